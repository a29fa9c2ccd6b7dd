"""The grid's one command: its table is that of the cells' own runs, and what is done is not done
again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pyro_vae as pv
from benchmarks import grid
from pyro_vae.errors import UserError
from pyro_vae.evaluation.result_files import load_estimate
from pyro_vae.runs.run_folder import open_run

ROOT = Path(__file__).resolve().parents[2]
PRIORS = ("StandardNormal", "MixtureOfGaussians(components=2)")


@pytest.mark.slow
def test_a_grid_on_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = grid.Grid(
        guides=("MeanField", "Sharp", "PointEstimate"),
        objectives=("Trace_ELBO",),
        priors=PRIORS,
        budget=15,
        num_samples=20,
        num_images=30,
        data="digits",
        latent_dim=2,
        net="MLP(hidden=8)",
        out=tmp_path / "cells",
        results=tmp_path / "figures",
    )
    grid.main(tiny)
    printed = capsys.readouterr().out
    held = json.loads((tmp_path / "figures" / "grid.json").read_text())
    assert held["budget"] == 15 and held["num_images"] == 30 and len(held["cells"]) == 6
    baseline, other, *rest = held["cells"]
    assert (
        "difference" not in baseline
        and "unknown guide" in rest[0]["refused"]
        and "no log p(x)" in rest[2]["refused"]
    )
    estimates = []
    for cell in (baseline, other):
        words = (cell[name] for name in ("guide", "objective", "prior"))
        run = open_run(tmp_path / "cells" / grid.Cell(*words).folder)
        ll = load_estimate(run.estimate_file("iw", "test"), run.trained())
        assert ll is not None and (cell["mean"], cell["se_mc"]) == (ll.mean, ll.se_mc)
        estimates.append(ll)
    differences = estimates[1].log_px - estimates[0].log_px
    assert other["difference"] == pytest.approx(float(differences.mean()))
    assert other["se_difference"] == pytest.approx(float(differences.std() / 30**0.5))
    assert isinstance(estimates[0], pv.LogMarginal)
    assert (
        printed.startswith("| guide |")
        and f"| {other['difference']:+.2f}".replace("-", "−") in printed
    )
    assert (tmp_path / "figures" / "grid.md").read_text().strip() == printed.strip()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.pt")}
    grid.main(tiny)
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.pt")} == done
    with pytest.raises(UserError, match="steps = 15, not 16"):
        grid.main(replace(tiny, budget=16))


@pytest.mark.slow
def test_data_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.grid", "--data", "nowhere.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        words, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 2 and found.stderr.startswith("error: nowhere.npz: no such file")
    assert found.stderr.count("\n") == 1 and not any(tmp_path.iterdir())
