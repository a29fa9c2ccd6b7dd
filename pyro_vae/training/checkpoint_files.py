"""The checkpoint files in a folder: the last ones and the best; damaged ones are renamed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyro_vae.errors import UserError
from pyro_vae.files import set_aside as set_files_aside
from pyro_vae.training.checkpoint import (
    AGAIN,
    Checkpoint,
    Damaged,
    Unchecked,
    _write_it,
    digest_of,
    load,
    manifest,
    save,
)

SUFFIX, BEST = ".pt", "best-"
MOST_NAMES = 5
"""In one line."""


def listed(folder: Path, best: bool = False) -> list[Path]:
    """All that is called a checkpoint (a best one), sound or not, the oldest first: in the order of
    the steps in the names.

    Raises:
        UserError: the folder can't be read, which is not to have none.
    """
    try:
        found = [
            path
            for path in folder.iterdir()
            if path.suffix == SUFFIX and not path.name.startswith(".")
        ]
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return []
        raise UserError(
            f"{folder}: no folder of checkpoints that can be read ({error.strerror}); {AGAIN}"
        ) from error
    return sorted((path for path in found if path.name.startswith(BEST) == best), key=_place_of)


def complete(folder: Path, best: bool = False) -> list[Path]:
    """Those of `listed` that have their SHA-256."""
    return [path for path in listed(folder, best) if _has_digest(path)]


def latest(folder: Path) -> Path:
    """The last checkpoint that has its SHA-256.

    Raises:
        UserError: there is none.
    """
    found = complete(folder)
    if not found:
        raise UserError(
            f"{folder}: no checkpoint in it (the training was killed before it wrote one, or it "
            "has not started)"
        )
    return found[-1]


@dataclass(frozen=True, eq=False)
class Found:
    """A sound checkpoint, and the newer ones that are not, each with its error."""

    path: Path
    held: Checkpoint
    unsound: Mapping[Path, Damaged] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What was passed over, in one line; empty where the last one is sound."""
        if not self.unsound:
            return ""
        passed_over = "; ".join(error.what for error in self.unsound.values())
        return f"{passed_over}: the previous one, {self.path.name}, is used"


def newest(folder: Path, best: bool = False) -> Found:
    """The newest checkpoint (or best one) that is sound.

    Raises:
        UserError: there is none, or the newest was written by a newer version.
    """
    unsound: dict[Path, Damaged] = {}
    for path in reversed(listed(folder, best)):
        try:
            return Found(path, load(path), unsound)
        except Damaged as error:
            unsound[path] = error
    others = listed(folder, not best)
    if any(isinstance(error, Unchecked) for error in unsound.values()):
        raise _unchecked(
            folder, [path for path in (*unsound, *others) if not _has_digest(path)] or list(unsound)
        )
    if unsound:
        raise next(iter(unsound.values()))
    if not others:
        latest(folder)
    if best:
        raise UserError(
            f"{folder}: no best checkpoint in it (a best checkpoint needs a validation set)"
        )
    raise UserError(
        f"{folder}: no checkpoint in it but the best one, {others[-1].name}, and no training "
        "can be resumed from that one"
    )


def _unchecked(folder: Path, paths: Sequence[Path]) -> Unchecked:
    """What is said of checkpoints without their SHA-256, there being no other."""
    names = sorted(path.name for path in paths)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    number = (
        "1 checkpoint without its SHA-256"
        if len(names) == 1
        else f"{len(names)} checkpoints without their SHA-256"
    )
    name = names[0] if len(names) == 1 else "NAME"
    return Unchecked(f"{folder}: {number}: {', '.join(names[:MOST_NAMES])}{more}", _write_it(name))


def add(folder: Path, checkpoint: Checkpoint, step: int, best: bool = False) -> Path:
    """Write ``step-N.pt`` (or ``best-N.pt``), over nothing that is there.

    Those of later steps, of a training that went on elsewhere or was gone back on, are set aside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{BEST if best else 'step-'}{step:09d}"
    path, again = folder / (stem + SUFFIX), 2
    for each in listed(folder, best):
        if _place_of(each)[0] > step:
            set_files_aside(each, manifest(each))
    while os.path.lexists(path) or os.path.lexists(
        manifest(path)
    ):  # the same step may come again after a resume
        path, again = folder / f"{stem}-{again}{SUFFIX}", again + 1
    save(path, checkpoint)
    return path


def remove(path: Path) -> None:
    """Remove a checkpoint, its SHA-256 last."""
    path.unlink(missing_ok=True)
    manifest(path).unlink(missing_ok=True)


def set_aside(unsound: Mapping[Path, Damaged]) -> None:
    """Rename checkpoints to ``….damaged`` (``….superseded`` without a SHA-256): kept, and never
    taken for the last one again.
    """
    for path, error in unsound.items():
        set_files_aside(path, manifest(path), why=error.aside)


def _has_digest(path: Path) -> bool:
    try:
        digest_of(path)
    except Unchecked:
        return False
    return True


def _place_of(path: Path) -> tuple[int, int, str]:
    """The step that a checkpoint's name gives, −1 where it is not such a name, and how many times
    it has come.
    """
    _, *words = path.stem.split("-")
    step, again = (int(word) if word.isdecimal() else None for word in (*words, "", "")[:2])
    return (-1 if step is None else step, again or 1, path.stem)
