"""What only shows or helps ends no work: streams, encodings, pictures, caches, a file system's
fsync, a compiler, the terminal.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae import UserError, memory, signals
from pyro_vae.cli.entry import main
from pyro_vae.compile import cache
from pyro_vae.plots import pages
from pyro_vae.streams import printable
from tests.support.children import QUICK, Child, done

TRAIN = ["train", *QUICK, "--steps", "5", "--device", "cpu"]
PROGRAM = "import sys; from pyro_vae.cli.entry import main; sys.exit(main(sys.argv[1:]))"


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())["evaluations"][0]
    return found


def stderr_is_closed() -> None:
    os.close(2)
    sys.stderr = None  # type: ignore[assignment]


def stderr_is_full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def reader_of_stderr_is_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)


def stdout_is_closed() -> None:
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def stdout_is_ascii() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


def no_fsync_of_folders() -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    os.fsync = fsync


def no_picture_can_be_drawn() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no fonts")

    for name in pages.PAGES:
        pages.PAGES[name] = broken


@pytest.mark.parametrize(
    "setup",
    [
        *(stderr_is_closed, stderr_is_full, reader_of_stderr_is_gone, stdout_is_closed),
        *(stdout_is_ascii, no_fsync_of_folders),
    ],
)
def test_the_training_ends_with_its_number(setup: Callable[[], None], tmp_path: Path) -> None:
    """Exit code 0, and the result in its file."""
    arguments = [each for each in TRAIN if each != "--quiet"]
    child = done(tmp_path, [*arguments, "--out", "run"], setup)
    assert child.wait() == 0, child.error
    assert np.isfinite(result(tmp_path / "run")["mean"])
    assert "Traceback" not in child.error
    if setup is stdout_is_ascii:
        assert "log p(x) ?" in child.output


def test_a_full_standard_output_is_told_once_all_is_written(tmp_path: Path) -> None:
    """Exit code 1, one line; the run is complete."""

    child = done(tmp_path, [*TRAIN, "--out", "run"], _stdout_is_full)
    assert child.wait() == 1 and "No space left" in child.error and child.error.count("\n") == 1
    assert np.isfinite(result(tmp_path / "run")["mean"])


def _stdout_is_full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_pictures_that_fail_are_a_line_after_the_number(tmp_path: Path) -> None:
    """The headline is there, the exit code 0, and the line says how to draw them."""
    arguments = [each for each in TRAIN if each != "--no-pictures"]
    child = done(tmp_path, [*arguments, "--out", "run"], no_picture_can_be_drawn)
    assert child.wait() == 0 and "log p(x)" in child.output
    assert "pictures are missing (RuntimeError: no fonts)" in child.error
    assert "pyro-vae plot run" in child.error and "Traceback" not in child.error


def test_a_picture_is_whole_or_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is drawn in memory, and written as every file is."""
    from matplotlib.figure import Figure

    from pyro_vae.plots.figures import save

    path = tmp_path / "x.png"
    save(Figure(), path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")
    monkeypatch.setattr(os, "replace", _fails)
    with pytest.raises(OSError, match=r"x\.png") as told:
        save(Figure(), path)
    assert told.value.filename == str(path) and path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.png"]


def _fails(*_: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_the_end_of_the_terminal_is_a_signal_to_stop(tmp_path: Path) -> None:
    """SIGHUP: a checkpoint, as for SIGTERM; ignored under nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("SIGHUP is ignored here, as under nohup, and so in every child")
    child = Child(tmp_path, ["train", *QUICK, "--steps", "100000", "--checkpoint-minutes", "0",
                             "--out", "run"])  # fmt: skip
    child.until(lambda: (tmp_path / "run" / "checkpoints").is_dir())
    child.send(signal.SIGHUP)
    assert child.wait() == 129
    assert "stopping after this step" in child.error and "stopped by SIGHUP" in child.error
    assert "--resume run" in child.error


def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stopping():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_cache_that_cannot_be_used_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning that names it; one that can is left alone."""
    (tmp_path / "afile").touch()
    cache.ensure.cache_clear()
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "afile"))
    with pytest.warns(UserWarning, match="afile can't be used"):
        cache.ensure()
    assert os.path.isdir(os.environ[cache.PLACE])
    cache.ensure.cache_clear()
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "new"))
    cache.ensure()
    assert os.environ[cache.PLACE] == str(tmp_path / "new")
    cache.ensure.cache_clear()


def test_a_compiler_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the replayed graph is taken, and the note says why."""
    from pyro_vae.compile import trace

    def hangs(*_: Any) -> Any:
        subprocess.run(["sleep", "60"])

    monkeypatch.setattr(trace, "_inductor", hangs)
    monkeypatch.setattr(trace, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(trace, "missing_compiler", lambda device: "")
    traced = trace.trace(lambda x: (x + 1,), [torch.ones(2)])
    begun = time.monotonic()
    with pytest.raises(
        trace.NotStageable, match=r"TimeoutError: the compiler took more than 0\.05"
    ):
        traced.compile([torch.ones(2)])
    assert time.monotonic() - begun < 30


def test_no_control_character_reaches_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a configuration, of names; letters stay as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "esc.toml").write_text('data = "\\u001b]0;title\\u0007x.npz"\n')
    assert main(["train", "--config", "esc.toml"]) == 2
    assert main(["evaluate", "no\x1b[2Jrun"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\x07" not in error and r"\x1b]0;title\x07x.npz" in error
    assert printable("Bücher ≥ π\n") == "Bücher ≥ π\n" and printable("a\x9bb") == r"a\x9bb"


def test_names_and_files_of_other_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte order mark is read over; a name that is too long is one short line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbflatent_dims = 2\n")
    assert main(["train", "--config", "bom.toml"]) == 2
    assert "did you mean 'latent_dim'" in capsys.readouterr().err
    assert main(["train", "--out", "x" * 300]) == 2
    error = capsys.readouterr().err
    assert "File name too long" in error and len(error) < 200


ALLOCATOR = RuntimeError(
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize("error", [ALLOCATOR, MemoryError()], ids=["torch", "Python"])
@pytest.mark.parametrize("place", ["fit_run.fit", "experiment.build_pair"])
def test_too_little_memory_is_one_line(
    place: str,
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In building the parts and in `fit`: exit code 1, and what to make smaller."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(f"pyro_vae.runs.{place}", fails)
    assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 1
    told = capsys.readouterr().err
    assert "does not fit into the memory" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--latent-dim", "1000000000000"], "memory|1000000000000"),
        (["--guide", "IAF(depth=1000000000)"], "1000000000 is too large for the size"),
        (["--num-samples", str(10**18)], "num-samples"),
        (["--steps", str(10**30)], "steps"),
    ],
)
def test_impossible_sizes_are_refused_before_they_are_begun(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, within seconds."""
    import re

    begun = time.monotonic()
    assert (
        main(["train", "--quiet", "--device", "cpu", "--out", str(tmp_path / "r"), *options]) == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(words, error), error
    assert time.monotonic() - begun < 60 and not (tmp_path / "r").exists()


def test_memory_is_estimated_in_words() -> None:
    assert memory.in_words(999) == "999 bytes" and memory.in_words(3.2e9) == "3.2 GB"
    with pytest.raises(UserError, match=r"it takes 1000000000.0 TB, and there are .*: give less"):
        memory.refuse_beyond(1e21, "it", "give less")


def test_a_bare_environment_ends_with_a_number(tmp_path: Path) -> None:
    """No HOME, a cache that can't be written, an ASCII locale, standard error closed."""
    (tmp_path / "afile").touch()
    environment = {
        "PATH": "/nonexistent",
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "afile"),
        "XDG_CACHE_HOME": str(tmp_path / "afile"),
        "MPLCONFIGDIR": str(tmp_path / "afile"),
    }
    arguments = [
        each for each in TRAIN if each not in ("--quiet", "--no-pictures", "--compile", "off")
    ]
    words = " ".join(f"'{each}'" for each in [sys.executable, "-c", PROGRAM, *arguments])
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {words} --out run 2>&-"],
        env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(b"log p(x) ? ")
    assert np.isfinite(result(tmp_path / "run")["mean"])
    assert (tmp_path / "run" / "reconstructions.png").stat().st_size > 1000
