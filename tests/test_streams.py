"""What is refused of a tensor of images is refused of a Dataset that streams them, at whichever
image it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import UserError, ais, log_marginal
from pyro_vae.evaluation import tiling
from tests.support.grids import thinned
from tests.support.pairs import binary_images, fresh

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "Dataset": TensorDataset,
    "DataLoader": lambda x: DataLoader(TensorDataset(x), 4),
}
ESTIMATES: dict[str, Callable[..., Any]] = {
    "importance": lambda *given, **how: log_marginal(*given, num_samples=40, device="cpu", **how),
    "exact": lambda *given: log_marginal(*given, num_samples=20, device="cpu", compile="off"),
    "annealed": lambda *given, **how: ais(
        *given, num_steps=2, num_chains=2, num_leapfrog=1, device="cpu", **how
    ),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches and tiles of 23 images: of 4, and of 8 where chains are annealed."""
    monkeypatch.setitem(tiling.ROWS, "cpu", 16)


@pytest.mark.parametrize(("how", "form"), thinned(["importance", "annealed"], FORMS))
def test_a_value_outside_the_support_is_found_in_any_image(form: str, how: str) -> None:
    pair, x = fresh("PyroModules"), binary_images(23)
    assert bool(ESTIMATES[how](*pair, FORMS[form](x), compile="off").log_px.isfinite().all())
    for image in (0, 7, 22):
        grey = x.clone()
        grey[image, 3] = 0.25
        with pytest.raises(
            UserError, match=r"site 'x': the value 0\.25 is outside the support of Bernoulli"
        ):
            ESTIMATES[how](*pair, FORMS[form](grey), compile="off")


def width(x: Tensor) -> Tensor:
    """No number where the second pixel is above 1."""
    return (1 - x[:, 1]).sqrt() + 0.5


def model(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, width²), of which Pyro checks nothing."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, width(x), validate_args=False), obs=x[:, 0])


def guide(x: Tensor) -> None:
    """Near the posterior."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.8))


def summed_out(x: Tensor) -> None:
    """A class that the guide lacks, so that log p(x) is exact."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(c, width(x), validate_args=False), obs=x[:, 0])


def nothing(x: Tensor) -> None:
    """Its guide."""


@pytest.mark.parametrize(("how", "form"), thinned(["importance", "exact", "annealed"], FORMS))
def test_a_log_weight_that_is_nan_ends_in_a_sentence_that_names_the_image(
    form: str, how: str
) -> None:
    """Beyond the images that the dry run sees."""
    x = torch.rand(23, 2, generator=torch.Generator().manual_seed(0))
    pair = (summed_out, nothing) if how == "exact" else (model, guide)
    assert bool(ESTIMATES[how](*pair, FORMS[form](x)).log_px.isfinite().all())
    x[17, 1] = 2.0
    with pytest.raises(UserError, match="image 17: log_prob of site 'x' is NaN"):
        ESTIMATES[how](*pair, FORMS[form](x))
