"""A run's folder that was changed by other hands: a resume goes on, or says in one line why not,
and loses nothing.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_vae.cli.entry import main
from pyro_vae.errors import UserError
from pyro_vae.evaluation import setup
from pyro_vae.runs.fit_run import Recorder
from pyro_vae.signals import Stopped
from pyro_vae.training import checkpoint_files, fit

TINY = [
    "--net",
    "MLP(hidden=2)",
    "--latent-dim",
    "1",
    "--batch-size",
    "8",
    "--checkpoint-minutes",
    "0",
    "--device",
    "cpu",
]
EVERYDAY, STRESS = 50, 1000
"""Changed folders."""


@pytest.fixture(scope="module", autouse=True)
def stopped_after_five_steps() -> Iterator[None]:
    """Every training here is stopped by SIGTERM in its fifth step, or in the fifth after it was
    resumed.
    """
    before = Recorder.at_boundary

    def at_boundary(self: Recorder, state: Callable[[], Any], after: str) -> None:
        self.boundaries = getattr(self, "boundaries", 0) + 1  # type: ignore[attr-defined]
        if self.boundaries == 5:  # type: ignore[attr-defined]
            self.waiting.signal = Stopped(15)
        before(self, state, after)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Recorder, "at_boundary", at_boundary)
        patched.setattr(os, "fsync", lambda descriptor: None)  # no power is lost here
        # the pair is sound, which is not what is looked at
        patched.setattr(fit, "check_training", lambda *_: ())
        patched.setattr(setup, "check_scores", lambda *_, **__: ("", ()))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs of three steps that was stopped in its second epoch, and again after it
    was resumed.
    """
    folder = tmp_path_factory.mktemp("trained")
    images = np.random.default_rng(0).random((30, 2, 2)) < 0.5
    np.savez(folder / "x.npz", images=images)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        arguments = ["--data", "x.npz", *TINY, "--compile", "off", "--quiet", "--no-pictures"]
        assert main(["train", *arguments, "--epochs", "9", "--out", "run"]) == 143
        assert main(["train", "--resume", "run", "--quiet"]) == 143
    assert len(checkpoint_files.complete(folder / "run" / "checkpoints")) == 4
    return folder


# each changes one thing in the folder; `random.Random` says which


def remove(path: Path, other: Path, moments: random.Random) -> None:
    path.unlink()


def cut(path: Path, other: Path, moments: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: moments.randrange(path.stat().st_size)])


def append(path: Path, other: Path, moments: random.Random) -> None:
    path.write_bytes(path.read_bytes() + moments.randbytes(20))


def swap(path: Path, other: Path, moments: random.Random) -> None:
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def by_folder(path: Path, other: Path, moments: random.Random) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()
    path.with_name("moved").rename(path / "moved")


def by_link_to_nothing(path: Path, other: Path, moments: random.Random) -> None:
    path.rename(path.with_name(f"{path.name}.moved"))
    path.symlink_to("nowhere")


def by_link(path: Path, other: Path, moments: random.Random) -> None:
    path.rename(path.with_name(f"{path.name}.moved"))
    path.symlink_to(f"{path.name}.moved")


def all_digests(path: Path, other: Path, moments: random.Random) -> None:
    for each in path.parent.glob("**/*.sha256"):
        each.unlink()


def all_of_the_folder(path: Path, other: Path, moments: random.Random) -> None:
    moments.choice([shutil.rmtree, lambda folder: by_link(folder, folder, moments)])(
        _run_of(path) / "checkpoints"
    )


KINDS = [
    remove,
    cut,
    append,
    swap,
    by_folder,
    by_link_to_nothing,
    by_link,
    all_digests,
    all_of_the_folder,
]


def _run_of(path: Path) -> Path:
    return next(each for each in path.parents if each.name == "run")


def contents(run: Path) -> set[bytes]:
    """What the files have, wherever they are; of metrics.jsonl every line, of the record of
    machines nothing.
    """
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    found = {
        path.read_bytes() for path in files if not path.name.startswith(("metrics", "environment"))
    }
    lines = (path.read_bytes().splitlines() for path in files if path.name.startswith("metrics"))
    return found | {line for each in lines for line in each}


def sound(folder: Path) -> list[Path]:
    """The checkpoints of steps that can be read, the newest last."""
    found = []
    for path in sorted(folder.glob("step-*.pt"), key=lambda path: path.stem):
        try:
            checkpoint_files.load(path)
        except UserError:
            continue
        found.append(path)
    return found


def evaluate(run: Path, capsys: pytest.CaptureFixture[str], changes: list[str]) -> None:
    """After a resume: a number from a sound checkpoint, or one line; nothing is lost by it."""
    before, kept = contents(run), sound(run / "checkpoints")
    few = ["--num-samples", "2", "--num-images", "2", "--no-pictures", "--quiet"]
    code = main(["evaluate", "run", *few, "--compile", "off", "--device", "cpu"])
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error, (changes, error)
    assert code == 0 or error.splitlines()[-1].startswith("error: "), (changes, error)
    if code == 0:
        assert kept, changes
    # the results are written anew, with what they had; a table and a record are replaced
    lost = {each for each in before - contents(run) if b"evaluations" not in each}
    assert not [each for each in lost if not each.startswith((b"image,", b"PK"))], changes
    assert kept == sound(run / "checkpoints")


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.stress if seed >= EVERYDAY else ())
        for seed in range(STRESS)
    ],
)
def test_a_resume_of_a_changed_folder_loses_nothing(
    seed: int,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One to three changes, then a resume or two, and an evaluation: no traceback, every content
    still there, and a sound checkpoint is taken.
    """
    moments = random.Random(seed)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    newest = sorted((run / "checkpoints").glob("step-*"))[-2:]
    changes = []
    for number in range(moments.randint(1, 3)):
        files = sorted(
            path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")
        )
        files = [path for path in files if path.name != "config.toml" and path.stat().st_size]
        if len(files) < 2:
            break
        path, other = moments.sample(files, 2)
        if number == 0 and seed % 2:  # one of the last checkpoint's two files
            path = newest[moments.randrange(2)]
        kind = KINDS[seed % len(KINDS)] if number == 0 else moments.choice(KINDS)
        changes.append(f"{kind.__name__} {path.name}")
        with suppress(OSError):  # what an earlier change has made impossible
            kind(path, other, moments)
    for _ in range(2):
        folder = run / "checkpoints"
        there = sound(folder)
        last = max(folder.glob("step-*.pt"), key=lambda path: path.stem, default=None)
        any_left, before = bool(list(folder.glob("*.pt"))), contents(run)
        code = main(["train", "--resume", "run", "--quiet"])
        error = capsys.readouterr().err
        assert "Traceback" not in error, changes
        assert error.splitlines()[-1].startswith(
            "error: " if code != 143 else "stopped by SIGTERM"
        ), (changes, error)
        assert before <= contents(run) and set(there) <= set(sound(folder)), changes
        if code == 2:
            assert contents(run) == before and error.count("\n") == 1, (changes, error)
        if any_left and not there:
            assert code == 2, (changes, error)
        if there and not (run / "metrics.jsonl").is_dir():
            assert code == 143, (changes, error)
            assert (f"the previous one, {there[-1].name}, is used" in error) == (
                there[-1] != last
            ), error
        if code != 143 or seed % 5:
            break
    evaluate(run, capsys, changes)
