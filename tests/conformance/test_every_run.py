"""Every part by the command line alone, on the embedded digits: train, evaluate the stored run,
draw from it.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import pytest

from pyro_vae.cli.entry import main
from tests.support.conforming import SWAPPED, choices_for, swaps

QUICK = ["--num-samples", "5", "--device", "cpu", "--compile", "off", "--quiet", "--json"]


@pytest.mark.stress
@pytest.mark.parametrize("swap", swaps(*SWAPPED))
def test_a_run(swap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's folder holds all that is needed to score it again, to the same figure; or why not is
    one line.
    """
    run = str(tmp_path / "run")
    chosen = [word for slot, name in choices_for(swap).items() for word in (f"--{slot}", name)]
    short = [
        "--latent-dim",
        "2",
        "--epochs",
        "1",
        "--batch-size",
        "256",
        "--eval-images",
        "20",
        "--no-pictures",
    ]
    assert main(["train", *chosen, *short, *QUICK, "--out", run]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert any(isinstance(value, float) and isfinite(value) for value in figures.values())
    code = main(["evaluate", run, "--num-images", "20", *QUICK])
    printed = capsys.readouterr()
    if code:  # a guide that has no density, or none for these images
        assert code == 2 and len(printed.err.strip().splitlines()) == 1
    else:
        assert json.loads(printed.out)["mean"] == pytest.approx(figures["mean"], abs=1e-4)
    assert main(["sample", run, "--out", str(tmp_path / "samples.png")]) == 0
    assert (tmp_path / "samples.png").stat().st_size
