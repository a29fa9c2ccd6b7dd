"""A training on the command line that stops being finite: one line with the step, the rate and the
site, and a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch

import pyro_vae as pv
from tests.support.children import QUICK, checkpoints, done, one_line

WILD = [
    *QUICK,
    "--optimizer",
    "SGD",
    "--learning-rate",
    "1e30",
    "--schedule",
    "constant",
    "--steps",
    "30",
    "--out",
    "run",
]


def finite(run: Path) -> bool:
    """Whether what is loaded is finite."""
    return all(
        bool(torch.isfinite(p).all()) for program in pv.load(run) for p in program.parameters()
    )


def test_it_stops_and_keeps_the_last_finite_step(tmp_path: Path) -> None:
    child = done(tmp_path, ["train", *WILD])
    assert child.wait() == 1
    one_line(
        child,
        "step ",
        "learning rate 1e+30",
        "it starts at site ",
        "checkpoint: run/checkpoints/step-",
        "--resume run",
    )
    assert finite(tmp_path / "run")
    again = done(tmp_path, ["train", "--resume", "run", "--quiet"])
    assert (
        again.wait() == 1
        and again.error.split("; checkpoint")[0] == child.error.split("; checkpoint")[0]
    )
    assert len(checkpoints(tmp_path / "run")) <= 2


def test_skipped_steps_are_counted_until_nothing_is_left(tmp_path: Path) -> None:
    child = done(tmp_path, ["train", *WILD, "--on-divergence", "skip"])
    assert child.wait() == 1
    one_line(child, "every step of epoch 2 was skipped", "checkpoint: run/checkpoints/")
    assert (
        finite(tmp_path / "run")
        and '"skipped": ' in (tmp_path / "run" / "metrics.jsonl").read_text()
    )
