"""The run folder: config.toml, environment.json, metrics.jsonl, checkpoints/, results.json,
evaluations/, pictures.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from pyro_vae import distributed
from pyro_vae.choices import specs
from pyro_vae.errors import UserError, did_you_mean, shortened
from pyro_vae.files import is_scratch
from pyro_vae.runs.options import Train
from pyro_vae.runs.run import Run, Unwritten, shown
from pyro_vae.runs.run_lock import HOLDER, LOCK, in_use, is_held

HOME = Path("runs")
"""Where runs without a name of their own go, in the current folder."""


def create(out: Path | None, name: str) -> Run:
    """A new run's folder: ``out``, or ``runs/NAME-N`` with the first free N. Nothing that exists is
    touched.

    Raises:
        UserError: ``out`` is a file, or a folder with something in it; or it can't be written.
    """
    return _as_here(distributed.current().once(lambda: _create(out, name)))


def _as_here(run: Run) -> Run:
    return run if distributed.current().first else Unwritten(run.folder)


def _create(out: Path | None, name: str) -> Run:
    try:
        if out is not None:
            refuse_taken(out)
            return Run(out.expanduser(), _make(out.expanduser()))
        parents = _make(HOME)
        for number in count(1):
            folder = HOME / f"{name}-{number}"
            with suppress(FileExistsError):
                folder.mkdir()
                return Run(folder, (*parents, folder))
    except OSError as error:
        raise UserError(
            f"{shown(out or HOME)}: the run's folder can't be created there ({error.strerror}); "
            "give another --out"
        ) from error
    raise AssertionError("numbers do not end")


def refuse_taken(out: Path) -> None:
    """A ``UserError`` where ``out`` is something already."""
    path = out.expanduser()
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"--out {shortened(str(out), 80)}: this can't be the name of a folder "
            f"({error.strerror}); give another"
        ) from error
    if path.is_dir() and is_held(path):
        raise UserError(in_use(out))
    # a training that was killed before its configuration was written leaves nothing else
    nothing = path.is_dir() and all(
        p.name in (LOCK, HOLDER) or is_scratch(p) for p in path.iterdir()
    )
    if path.exists() and not nothing:
        what = "a folder that is not empty" if path.is_dir() else "a file"
        raise UserError(
            f"{out} exists ({what}), and a run never overwrites files: give another --out"
        )


def open_run(folder: str | Path) -> Run:
    """The run in ``folder``; a ``UserError`` where there is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        known = (
            [each.parent.name for each in path.parent.glob("*/config.toml")]
            if path.parent.is_dir()
            else []
        )
        hint = f" ({did_you_mean('run', path.name, known)})" if known else ""
        raise UserError(f"{folder}: no such run folder{hint}")
    run = _as_here(Run(path))
    if not run.config_file.is_file():
        raise UserError(f"{folder}: not a run folder, because it has no config.toml")
    return run


def load(
    run_folder: str | Path, checkpoint: str = "last", *, trust: bool = False
) -> tuple[Any, Any]:
    """Load the trained model and guide of a run folder, in eval mode, on the CPU.

    They are built from its config.toml, and their parameters are read from a checkpoint.

    Args:
        run_folder: the folder of ``pyro-vae train``.
        checkpoint: ``last``; or ``best``, that of the highest validation ELBO. If the last one is
            damaged or has no SHA-256, the one before it is used, with a warning.
        trust: whether to run code of parts given as ``file.py:Name`` or ``module:Name`` that you
            have not trained with on this machine.

    Returns:
        ``(model, guide)``.

    Raises:
        UserError: such code without ``trust``; no run there; its configuration or checkpoint is
            missing or damaged, or the two do not fit together.
    """
    run = open_run(run_folder)
    with run.code(trust):
        model, guide, _ = run.load_pair(checkpoint)
    return model, guide


def run_name(options: Train) -> str:
    """``DATA-GUIDE``, in letters that serve in a file's name."""

    words = (Path(options.data).stem, specs.parse(options.guide).name.rpartition(":")[2])
    return "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") or "run" for word in words)


def _make(folder: Path) -> tuple[Path, ...]:
    """Make the folder and its parents; those that were not there, the outermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(reversed(missing))
