"""SIGTERM and the first SIGINT end a training after a step, with a checkpoint; a second one ends it
at once.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import pyro_vae as pv
from pyro_vae.training import checkpoint_files
from tests.support.children import QUICK, SMALL, Child, checkpoints, done, fsync_hangs

ENDLESS = ["--compile", "off", "--steps", "1000000", "--batch-size", "1", "--out", "run"]
"""An epoch has 1294 steps: whenever a signal comes, it is within one."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_within_the_epoch(
    number: int, code: int, tmp_path: Path
) -> None:
    child = Child(tmp_path, ["train", *SMALL, *ENDLESS])
    child.until(lambda: "/1000000 [" in child.error)
    child.send(number)
    assert child.wait() == code
    last = child.error.splitlines()[-1]
    name = checkpoints(tmp_path / "run")[-1]
    assert last.startswith(
        f"stopped by {signal.Signals(number).name}; checkpoint: run/checkpoints/{name}"
    )
    assert "pyro-vae train --resume run" in last and "Traceback" not in child.error
    position = checkpoint_files.newest(tmp_path / "run" / "checkpoints").held.sections["training"][
        "position"
    ]
    assert (
        position["step"] > position["first_step"]
        and position["seen"] == position["step"] - position["first_step"]
    )
    pv.load(tmp_path / "run")


def test_a_second_signal_ends_at_once_and_the_files_are_whole(tmp_path: Path) -> None:
    """The first one comes while a checkpoint is being written, on a disk that takes a minute."""
    child = Child(tmp_path, ["train", *QUICK, *ENDLESS, "--checkpoint-minutes", "0"], fsync_hangs)
    run = tmp_path / "run"
    child.until((run / "hangs").exists)
    before = {path: path.read_bytes() for path in (run / "checkpoints").glob("step-*")}
    child.send(signal.SIGINT)
    child.process.join(0.3)
    assert child.process.is_alive()  # it waits for the end of the step
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert {
        path: path.read_bytes() for path in (run / "checkpoints").glob("step-*")
    } == before and len(before) >= 2
    assert list((run / "checkpoints").glob("*.tmp"))
    pv.load(run)
    again = Child(tmp_path, ["train", "--resume", "run", "--quiet"])
    again.until(lambda: not list((run / "checkpoints").glob("*.tmp")))  # swept at the next start
    again.kill()


def test_a_signal_before_the_first_step_takes_one_and_keeps_it(tmp_path: Path) -> None:
    child = Child(tmp_path, ["train", *QUICK, *ENDLESS])
    child.until((tmp_path / "run" / "environment.json").is_file)
    child.send(signal.SIGTERM)
    assert child.wait() == 143 and len(checkpoints(tmp_path / "run")) == 1


def test_a_signal_in_the_evaluation_keeps_the_training(tmp_path: Path) -> None:
    arguments = [
        *QUICK,
        "--steps",
        "20",
        "--out",
        "run",
        "--num-samples",
        "100000000",
        "--eval-images",
        "300",
    ]
    child = Child(tmp_path, ["train", *arguments])
    child.until((tmp_path / "run" / "results.json").is_file)
    child.send(signal.SIGINT)
    assert child.wait() == 130 and "the trained pair is saved" in child.error
    assert (
        done(
            tmp_path,
            [
                "evaluate",
                "run",
                "--num-samples",
                "5",
                "--num-images",
                "5",
                "--quiet",
                "--no-pictures",
            ],
        ).wait()
        == 0
    )
