"""A training that dies goes on from its last checkpoint, and ends where it would have ended."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.training import checkpoint_files
from tests.support.children import (
    QUICK,
    Child,
    checkpoints,
    done,
    killed_before_its_configuration,
    one_line,
)
from tests.support.runs import assert_same_end

RUN = [
    *QUICK,
    "--early-stopping",
    "1000",
    "--kl-warmup",
    "3",
    "--grad-clip",
    "5",
    "--checkpoint-minutes",
    "0",
]
"""All that has a state: an early stopping that never stops, a warm-up, a schedule, Adam; saved
after every step.
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps that nothing disturbs; it is not saved on the way."""
    folder = tmp_path_factory.mktemp("whole")
    steady = [word if word != "0" else "5" for word in RUN]
    child = done(folder, ["train", *steady, "--steps", "60", "--out", "run"])
    assert child.wait() == 0, child.error
    return folder / "run"


def test_a_folder_without_a_configuration_is_begun_again(tmp_path: Path) -> None:
    """Killed between the folder and its configuration: nothing is lost, as nothing was trained."""
    train = ["train", *QUICK, "--steps", "20", "--out", "half"]
    assert done(tmp_path, train, killed_before_its_configuration).wait() == 137
    left = {path.name for path in (tmp_path / "half").iterdir()}
    assert left and "config.toml" not in left
    resumed = done(tmp_path, ["train", "--resume", "half", "--quiet"])
    assert resumed.wait() == 2
    one_line(resumed, "half", "no run in this folder", "config.toml")
    again = done(tmp_path, train)
    assert again.wait() == 0, again.error
    assert (tmp_path / "half" / "results.json").is_file()


# in the first epoch, at the end of the third (11 steps each), in the last, which has 16 steps
@pytest.mark.parametrize("stop", [4, 33, 52])
def test_resumed_at_a_point_it_ends_as_the_whole_run(
    stop: int, whole: Path, tmp_path: Path
) -> None:
    child = Child(tmp_path, ["train", *RUN, "--steps", "60", "--out", "run"])
    child.until(lambda: (checkpoints(tmp_path / "run") or [""])[-1] >= f"step-{stop:09d}")
    child.kill()
    reached = checkpoints(tmp_path / "run")[-1]
    again = done(tmp_path, ["train", "--resume", "run", "--checkpoint-minutes", "5"])
    assert again.wait() == 0, again.error
    assert reached >= f"step-{stop:09d}" and "Traceback" not in again.error
    assert_same_end(tmp_path / "run", whole)
    ours, theirs = (
        json.loads((run / "results.json").read_text()) for run in (tmp_path / "run", whole)
    )
    assert ours["evaluations"][0]["mean"] == theirs["evaluations"][0]["mean"]
    assert len(ours["training"]["resumed"]) == 1 and "step" in ours["training"]["resumed"][0]


def killed_often(folder: Path, times: int, steps: int, seed: int) -> None:
    """``kill -9`` at random moments of a run that saves constantly; each time it loads, and goes
    on.
    """
    moments, run, reached = random.Random(seed), folder / "run", 0
    arguments = ["train", *RUN, "--steps", str(steps), "--out", "run"]
    for _ in range(times):
        child = Child(folder, arguments)
        start, wait = reached, moments.randint(1, 20)
        child.until(lambda start=start, wait=wait: last_step(run) >= min(start + wait, steps - 1))  # type: ignore[misc]
        time.sleep(moments.random() * 0.02)
        child.kill()
        model, guide = pv.load(run)
        assert all(
            bool(torch.isfinite(p).all())
            for program in (model, guide)
            for p in program.parameters()
        )
        assert last_step(run) > reached
        reached, arguments = last_step(run), ["train", "--resume", "run"]
    child = done(folder, [*arguments, "--checkpoint-minutes", "5"])
    assert child.wait() == 0, child.error
    assert not list(run.rglob("*.tmp"))
    left = checkpoint_files.complete(
        run / "checkpoints"
    )  # two of each process: none removes those of another
    assert len(left) == len(checkpoint_files.listed(run / "checkpoints")) > times
    for path in left:
        checkpoint_files.load(path)


def last_step(run: Path) -> int:
    """Of the newest complete checkpoint."""
    names = checkpoints(run)
    return int(names[-1].removeprefix("step-").split(".")[0].split("-")[0]) if names else 0


def uninterrupted(folder: Path, steps: int) -> Path:
    """The run that nobody kills."""
    child = done(folder, ["train", *RUN[:-1], "5", "--steps", str(steps), "--out", "whole"])
    assert child.wait() == 0, child.error
    return folder / "whole"


@pytest.mark.slow
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    killed_often(tmp_path, 10, 200, seed=0)
    assert_same_end(tmp_path / "run", uninterrupted(tmp_path, 200))


@pytest.mark.stress
def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    killed_often(tmp_path, 50, 900, seed=1)
    assert_same_end(tmp_path / "run", uninterrupted(tmp_path, 900))
