"""A disk that is full, closed or something else: one line, and the checkpoint before is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyro_vae as pv
from tests.support.children import QUICK, checkpoints, disk_is_full, done, one_line, small_files
from tests.support.runs import assert_same_end

TRAIN = ["train", *QUICK, "--steps", "40", "--checkpoint-minutes", "0", "--out", "run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"), [(small_files, "File too large"), (disk_is_full, "No space left on device")]
)
def test_a_first_checkpoint_that_does_not_fit(fault: object, words: str, tmp_path: Path) -> None:
    child = done(tmp_path, TRAIN, fault)  # type: ignore[arg-type]
    assert child.wait() == 1
    one_line(child, words, "run can't be written", "no checkpoint was written yet")
    again = done(
        tmp_path, ["train", "--resume", "run", "--quiet"]
    )  # with room, it goes on: from the start
    assert again.wait() == 0 and "starts at the first step" in again.error
    whole = done(tmp_path, [*TRAIN[:-1], "whole"])
    assert whole.wait() == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [small_files, disk_is_full])
def test_a_later_checkpoint_that_does_not_fit_leaves_the_one_before(
    fault: object, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = done(tmp_path, TRAIN, stops_after(7))
    assert first.wait() == 143
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").glob("step-*")}
    child = done(tmp_path, ["train", "--resume", "run", "--quiet"], fault)  # type: ignore[arg-type]
    assert child.wait() == 1
    one_line(
        child,
        "run can't be written",
        f"checkpoint: run/checkpoints/{checkpoints(run)[-1]}",
        "--resume run",
    )
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").glob("step-*")} == before
    assert not list(run.rglob("*.tmp"))
    pv.load(run)
    assert done(tmp_path, ["train", "--resume", "run", "--quiet"]).wait() == 0


def stops_after(steps: int) -> object:
    """The setup of a child that is terminated after so many steps."""
    from functools import partial

    from tests.support.children import terminated_after

    return partial(terminated_after, steps)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    child = done(tmp_path, TRAIN)
    assert child.wait() == 2
    one_line(child, "run", "exists (a file)")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_file_where_the_checkpoints_should_be(tmp_path: Path) -> None:
    assert done(tmp_path, TRAIN, small_files).wait() == 1
    run = tmp_path / "run"
    for path in sorted((run / "checkpoints").iterdir()):
        path.unlink()
    (run / "checkpoints").rmdir()
    (run / "checkpoints").write_text("mine")
    child = done(tmp_path, ["train", "--resume", "run", "--quiet"])
    assert child.wait() == 2
    one_line(child, "run/checkpoints: no folder of checkpoints", "Not a directory")
    assert (run / "checkpoints").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores a file's mode")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    child = done(tmp_path, [*TRAIN[:-1], "closed/run"])
    assert child.wait() == 2
    one_line(child, "closed/run", "Permission denied", "--out")


def test_a_run_that_may_no_longer_be_written(tmp_path: Path) -> None:
    """As on a file system that was mounted again, read-only: no file can be created, root's
    neither.
    """
    from tests.support.children import read_only

    assert done(tmp_path, TRAIN, stops_after(7)).wait() == 143
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    child = done(tmp_path, ["train", "--resume", "run", "--quiet"], read_only)
    assert child.wait() == 1
    one_line(child, "Read-only file system")
    assert {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == before


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    assert done(tmp_path, TRAIN, stops_after(7)).wait() == 143
    run = tmp_path / "run"
    left = [
        run / ".results.json.4194305.tmp",
        run / "checkpoints" / ".step-000000009.pt.4194305.tmp",
    ]
    for path in left:
        path.write_bytes(b"half")
    mine = run / "notes.tmp"
    mine.write_text("mine")
    assert done(tmp_path, ["train", "--resume", "run", "--quiet"]).wait() == 0
    assert not any(path.exists() for path in left) and mine.read_text() == "mine"
