"""The examples in the docstrings run."""

from __future__ import annotations

import inspect
import math
from operator import attrgetter
from textwrap import dedent

import pytest
import torch

import pyro_vae as pv
from pyro_vae import guides, models


@pytest.mark.parametrize(
    "name",
    [
        *("fit", "check_pair", "log_marginal", "log_weights", "compare", "encode", "reconstruct"),
        *("sample", "impute", "data.load", "data.observe"),
    ],
)
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape = (1, 4, 4)
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)).round()
    model = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(shape, 2))
    guide = guides.MeanField(shape, 2)
    words = inspect.getdoc(attrgetter(name)(pv)) or ""
    block = words.partition("Example::\n\n")[2].partition("\n\n")[0]
    assert block.count("pv.") and f"pv.{name}(" in block
    given = {"pv": pv, "math": math, "torch": torch, "model": model, "guide": guide, "x": x}
    exec(dedent(block), given)
    assert "print" not in block or name == "check_pair" or "log p(x)" in capsys.readouterr().out
    for kept in given.keys() & {"z", "images"}:
        assert given[kept].shape[1:] == {"z": (2,), "images": shape}[kept]
