"""One process trains in a run's folder; the lock of a killed one is taken over."""

from __future__ import annotations

import json
import platform
import signal
from pathlib import Path

from tests.support.children import QUICK, Child, checkpoints, done, one_line

TRAIN = ["train", *QUICK, "--steps", "1000000", "--checkpoint-minutes", "0", "--out", "run"]


def test_the_second_process_is_refused_and_a_dead_ones_lock_taken_over(tmp_path: Path) -> None:
    first = Child(tmp_path, TRAIN)
    first.until(lambda: len(checkpoints(tmp_path / "run")) == 2)
    for command in (["train", "--resume", "run", "--quiet"], TRAIN):
        second = done(tmp_path, command)
        assert second.wait() == 2
        one_line(second, f"run is in use by process {first.pid} on {platform.node()}")
    reading = done(
        tmp_path,
        ["evaluate", "run", "--num-samples", "5", "--num-images", "5", "--quiet", "--no-pictures"],
    )
    assert reading.wait() == 0, reading.error  # a run may be looked at while it trains
    first.kill()
    assert json.loads((tmp_path / "run" / ".run.holder").read_text())["pid"] == first.pid
    third = Child(tmp_path, ["train", "--resume", "run", "--quiet"])
    step = checkpoints(tmp_path / "run")[-1]
    third.until(lambda: checkpoints(tmp_path / "run")[-1] > step)
    assert json.loads((tmp_path / "run" / ".run.holder").read_text())["pid"] == third.pid
    third.kill()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    first = Child(tmp_path, TRAIN)
    first.until(lambda: len(checkpoints(tmp_path / "run")) == 2)
    (tmp_path / "run" / ".run.holder").write_text("[")
    second = done(tmp_path, ["train", "--resume", "run", "--quiet"])
    first.kill()
    assert second.wait() == 2
    one_line(second, "in use by another process")


def test_a_finished_run_is_not_resumed_and_holds_nothing(tmp_path: Path) -> None:
    assert done(tmp_path, ["train", *QUICK, "--steps", "20", "--out", "run"]).wait() == 0
    assert not (tmp_path / "run" / ".run.holder").exists()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = done(tmp_path, ["train", "--resume", "run", "--quiet"])
    assert again.wait() == 2
    one_line(again, "run is complete", "pyro-vae evaluate run")
    assert {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == before


def test_a_lock_that_is_removed_while_it_is_held_is_taken_again_or_lost_to_one(
    tmp_path: Path,
) -> None:
    """Never do two train in one folder: the one that was asleep stops, and writes nothing more."""
    run = tmp_path / "run"
    first = Child(tmp_path, TRAIN)
    first.until(lambda: len(checkpoints(run)) == 2)
    (run / ".run.lock").unlink()
    first.until(lambda: (run / ".run.lock").exists())
    step = checkpoints(run)[-1]
    first.until(lambda: checkpoints(run)[-1] > step)
    first.send(signal.SIGSTOP)
    (run / ".run.lock").unlink()
    step = checkpoints(run)[-1]
    second = Child(tmp_path, ["train", "--resume", "run", "--quiet"])
    second.until(lambda: checkpoints(run)[-1] > step)
    first.send(signal.SIGCONT)
    assert first.wait() == 1
    one_line(first, "the lock of run was removed", f"process {second.pid}", "writes nothing more")
    step = checkpoints(run)[-1]
    second.until(lambda: checkpoints(run)[-1] > step)
    second.kill()
    assert len(list(run.rglob("*.superseded*"))) <= 2
