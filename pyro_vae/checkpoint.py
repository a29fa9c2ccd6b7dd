"""Checkpoints: named sections of tensors in one file, written whole or not at all, with a SHA-256 beside it.

A section is what a ``state_dict`` holds: a run's checkpoint has ``model`` and ``guide``, and what a training needs to go on.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae import __version__
from pyro_vae.errors import UserError
from pyro_vae.files import write_atomically

FORMAT = 1
"""Raised when an older version could not read what is written."""

SUFFIX, BEST = ".pt", "best-"
AGAIN = "restore it from a copy, or train again"


class Damaged(UserError):
    """A checkpoint that can't be taken for what it was written as; an older one may serve."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds: sections of tensors, and plain values about them (epoch, step, shape of an image)."""

    sections: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def state_of(model: Any, guide: Any) -> dict[str, dict[str, Any]]:
    """The sections ``model`` and ``guide``.

    Raises:
        UserError: one of them is no ``nn.Module``, so that nothing tells which tensors are its own.
    """
    sections = {}
    for role, program in (("model", model), ("guide", guide)):
        if not isinstance(program, nn.Module):
            raise UserError(
                f"the {role} is a {type(program).__name__}, not an nn.Module, so a checkpoint can't tell which tensors are its "
                "own: write it as a PyroModule, or keep its parameters yourself"
            )
        sections[role] = dict(program.state_dict())
    return sections


def restore(checkpoint: Checkpoint, model: nn.Module, guide: nn.Module, name: str) -> None:
    """Copy the sections ``model`` and ``guide`` into the two modules; ``name`` is the file's, for the error.

    Raises:
        UserError: the tensors are not those of the modules.
    """
    restore_sections(checkpoint.sections, {"model": model, "guide": guide}, name)


def restore_sections(sections: Mapping[str, Mapping[str, Any]], modules: Mapping[str, nn.Module], name: str) -> None:
    """Copy to each module the section of its name."""
    for role, program in modules.items():
        try:
            program.load_state_dict(dict(sections[role]), strict=True)
        except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
            raise UserError(
                f"{name}: its tensors are not those of the {role} that the configuration describes "
                f"({lines[min(1, len(lines) - 1)].rstrip('.')[:160]}); use the configuration and the code that it was trained with"
            ) from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, then its SHA-256 (as ``sha256sum`` does): a file without one is not a checkpoint yet."""
    buffer = io.BytesIO()
    held = {
        "format": FORMAT,
        "version": __version__,
        "sections": _plain(checkpoint.sections),
        "metadata": dict(checkpoint.metadata),
    }
    torch.save(held, buffer)
    content = buffer.getvalue()
    write_atomically(path, content)
    write_atomically(manifest(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())


def load(path: Path) -> Checkpoint:
    """Read a file that `save` wrote; its tensors are on the CPU. Nothing in the file is run.

    Raises:
        Damaged: the file or its SHA-256 is absent, or the file is damaged or something else.
        UserError: it was written by a newer version.
    """
    if not path.is_file():
        raise Damaged(f"{path}: no such checkpoint")
    if not manifest(path).is_file():
        raise Damaged(f"{path}: its SHA-256 ({manifest(path).name}) is missing, so it can't be checked; {AGAIN}")
    try:
        content = path.read_bytes()
        expected = manifest(path).read_text(errors="replace").split(" ")[0]
    except OSError as error:
        raise Damaged(f"{path}: can't be read ({error.strerror}); {AGAIN}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise Damaged(f"{path}: damaged, for its SHA-256 is not the one in {manifest(path).name}; {AGAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at a file that is not its own
            held = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch's own text advises to load without the safeguard
        raise Damaged(
            f"{path}: not a checkpoint of pyro_vae (it holds other things than tensors and plain values); {AGAIN}"
        ) from error
    if not isinstance(held, dict) or not _are_sections(held.get("sections")):
        raise Damaged(f"{path}: not a checkpoint of pyro_vae (it has no sections); {AGAIN}")
    _check_format(path, held)
    metadata = held.get("metadata", {})
    return Checkpoint(held["sections"], metadata if isinstance(metadata, dict) else {})


def _check_format(path: Path, held: Mapping[str, Any]) -> None:
    number, writer = held.get("format"), held.get("version")
    if type(number) is not int or number < 1:
        raise Damaged(f"{path}: not a checkpoint of pyro_vae (its format is {number!r}); {AGAIN}")
    if number > FORMAT:
        wanted = f"pyro-vae {writer} or later" if isinstance(writer, str) else "the version that wrote it"
        raise UserError(
            f"{path}: written in format {number}, and this version, {__version__}, reads format {FORMAT}: install {wanted}"
        )


def _are_sections(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


# ---------------------------------------------------------------------------------------------------------------------
# Several in a folder: the last and the one before, and the best


def manifest(path: Path) -> Path:
    """The file beside ``path`` that holds its SHA-256."""
    return path.with_name(path.name + ".sha256")


def complete(folder: Path, best: bool = False) -> list[Path]:
    """The checkpoints that have their SHA-256, the oldest first: in the order of names, which tell the step."""
    found = (path for path in folder.glob(f"*{SUFFIX}") if path.name.startswith(BEST) == best)
    return sorted((path for path in found if manifest(path).is_file()), key=lambda path: path.stem)


def latest(folder: Path) -> Path:
    """The last checkpoint that has its SHA-256.

    Raises:
        UserError: there is none.
    """
    found = complete(folder)
    if not found:
        raise UserError(f"{folder}: no checkpoint in it (a training that was killed before its first one has none)")
    return found[-1]


@dataclass(frozen=True, eq=False)
class Found:
    """A sound checkpoint, and the newer ones that are not, each with the sentence that says so."""

    path: Path
    held: Checkpoint
    unsound: Mapping[Path, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What was passed over, in one line; empty where the last one is sound."""
        if not self.unsound:
            return ""
        return f"{'; '.join(self.unsound.values()).replace('; ' + AGAIN, '')}: the previous one, {self.path.name}, is taken"


def newest(folder: Path, best: bool = False) -> Found:
    """The newest checkpoint (or best one) that is sound.

    Raises:
        UserError: there is none, or the newest was written by a newer version.
    """
    unsound: dict[Path, str] = {}
    for path in reversed(complete(folder, best)):
        try:
            return Found(path, load(path), unsound)
        except Damaged as error:
            unsound[path] = str(error)
    if unsound:
        raise Damaged(next(iter(unsound.values())))
    latest(folder)
    raise UserError(f"{folder}: no best checkpoint in it (there is one where a validation set was scored)")


def add(folder: Path, checkpoint: Checkpoint, step: int, best: bool = False) -> Path:
    """Write ``step-N.pt`` (or ``best-N.pt``); then remove all but the last two (the last best one), the oldest first.

    Those of later steps, of a training that went on elsewhere or was gone back on, are set aside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{BEST if best else 'step-'}{step:09d}"
    path, again = folder / (stem + SUFFIX), 2
    set_aside((each for each in complete(folder, best) if _step_of(each) > step), "superseded")
    while path.exists():  # never written over: the same step may come again after a resume, or with other parameters
        path, again = folder / f"{stem}-{again}{SUFFIX}", again + 1
    save(path, checkpoint)
    kept = complete(folder, best)[-1 if best else -2 :]
    for old in sorted(folder.glob(f"*{SUFFIX}")):
        if old.name.startswith(BEST) == best and old not in kept:
            manifest(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)
    return path


def set_aside(paths: Iterable[Path], why: str = "damaged") -> None:
    """Rename checkpoints to ``….damaged``: kept, and never taken for the last one again."""
    for path in paths:
        for each in (manifest(path), path):
            if each.exists():
                os.replace(each, each.with_name(f"{each.name}.{why}"))


def _step_of(path: Path) -> int:
    """The step that a checkpoint's name tells; −1 where it is not such a name."""
    words = path.stem.split("-")
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else -1


def _plain(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(section) for name, section in sections.items()}
