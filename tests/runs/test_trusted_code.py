"""A run's folder may carry code: it is run where this user trained with it, or says so."""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from importlib.util import cache_from_source
from pathlib import Path

import numpy as np
import pytest

import pyro_vae as pv
from pyro_vae.choices import trust
from pyro_vae.cli.entry import main

MINE = "from pyro_vae.guides import MeanField\n\n\nclass Mine(MeanField):\n    pass\n"
EVIL = MINE + "\nopen('PWNED', 'w').close()\n"
QUICK = ["--num-samples", "2", "--no-pictures", "--quiet", "--compile", "off", "--device", "cpu"]
TRAIN = [*QUICK, "--net", "MLP(hidden=2)", "--latent-dim", "1", "--steps", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """job, in which a run was trained with mine.py and another with a module of a package."""
    job = tmp_path_factory.mktemp("trained") / "job"
    (job / "lab").mkdir(parents=True)
    (job / "mine.py").write_text(MINE)
    (job / "lab" / "parts.py").write_text(MINE)
    np.savez(job / "x.npz", images=np.random.default_rng(0).random((30, 2, 2)) < 0.5)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(job)
        patched.syspath_prepend(str(job))
        for name, guide in (("file", "mine.py:Mine"), ("module", "lab.parts:Mine")):
            arguments = ["--data", "x.npz", "--guide", guide, "--out", name]
            assert main(["train", *arguments, *TRAIN]) == 0
    return job


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, beside which we are."""
    shutil.copytree(trained, tmp_path / "job")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "job"))
    forget_modules()
    return tmp_path


def forget_modules() -> None:
    for name in list(sys.modules):
        if name.startswith(("pyro_vae_file_", "lab")):
            del sys.modules[name]


def forget(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    """As another user, or on another machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr(trust, "_here", set())
    forget_modules()


@pytest.mark.parametrize("name", ["file", "module"])
def test_own_code_is_found_beside_the_run_and_known(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another folder, without a word: by `evaluate`, `sample`, `plot` and `load`."""
    run = f"job/{name}"
    for command in (["evaluate", run, *QUICK], ["sample", run], ["plot", run, "curves"]):
        assert main(command) == 0
    assert "trust" not in capsys.readouterr().err
    assert type(pv.load(run)[1]).__name__ == "Mine"


@pytest.mark.filterwarnings("always:running the code of")
@pytest.mark.parametrize("name", ["file", "module"])
def test_code_of_others_is_run_where_it_is_trusted(
    here: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in a line that names the file, by every command; once trusted it is known."""
    forget(monkeypatch, here / "state")
    run, file = f"job/{name}", "mine.py" if name == "file" else "parts.py"
    for path in (here / "job" / "mine.py", here / "job" / "lab" / "parts.py"):
        path.write_text(EVIL)
    resume = ["train", "--resume", run, "--quiet"]
    for command in (
        ["evaluate", run, *QUICK],
        ["sample", run],
        ["plot", run],
        ["audit", run],
        ["compare", run, "job/other", *QUICK[:2], "--num-images", "3"],
        resume,
    ):
        if command is resume:
            (here / run / "results.json").unlink()
        shutil.copytree(here / run, here / "job" / "other", dirs_exist_ok=True)
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert f"{file} (SHA-256 " in error and "--trust" in error and "trust=True" in error
        assert "Traceback" not in error and error.splitlines()[-1].startswith("error: ")
    with pytest.raises(pv.UserError, match="trained with"):
        pv.load(run)
    assert not Path("PWNED").exists()
    assert main(["evaluate", run, *QUICK, "--trust"]) == 0
    assert f"{file} (SHA-256" in capsys.readouterr().err and Path("PWNED").exists()
    forget_modules()
    assert main(["evaluate", run, *QUICK]) == 0
    assert "trust" not in capsys.readouterr().err


def test_trust_in_python(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load(run, trust=True)` warns of whose code it is."""
    forget(monkeypatch, here / "state")
    with pytest.warns(UserWarning, match="running the code of .*mine.py"):
        _, guide = pv.load("job/file", trust=True)
    assert type(guide).__name__ == "Mine"


def test_a_file_in_the_runs_folder_is_not_taken_for_the_one_trained_with(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed one is passed over where the one that was run is still there."""
    (here / "job" / "file" / "mine.py").write_text(EVIL)
    assert main(["evaluate", "job/file", *QUICK]) == 0
    (here / "job" / "mine.py").unlink()
    forget_modules()
    assert main(["evaluate", "job/file", *QUICK]) == 2
    assert "the run's folder has a copy of it" in capsys.readouterr().err
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("name", ["file", "module"])
def test_compiled_files_are_left_alone(
    here: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .pyc of other code with the source's time and size, which Python itself would run."""
    source = here / "job" / ("mine.py" if name == "file" else "lab/parts.py")
    time, kept = source.stat(), source.read_bytes()
    evil = b"open('PWNED','w').close()\n"
    source.write_bytes(evil + b"#" * (len(kept) - len(evil)))
    os.utime(source, ns=(time.st_atime_ns, time.st_mtime_ns))
    py_compile.compile(str(source), cfile=cache_from_source(str(source)), doraise=True)
    source.write_bytes(kept)
    os.utime(source, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert main(["evaluate", f"job/{name}", *QUICK]) == 0
    assert not Path("PWNED").exists()


def test_without_a_home_what_was_trained_with_is_known_to_the_process(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a state folder that can't be made ends nothing."""
    (here / "afile").touch()
    forget(monkeypatch, here / "afile")
    monkeypatch.chdir(here / "job")
    arguments = ["--data", "x.npz", "--guide", "mine.py:Mine", "--out", "again"]
    assert main(["train", *arguments, *TRAIN]) == 0
    assert main(["evaluate", "again", *QUICK]) == 0
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert trust.folder() is None and not trust.is_known("0" * 64)
