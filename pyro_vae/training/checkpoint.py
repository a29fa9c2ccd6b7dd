"""The checkpoint file: named sections of tensors, written atomically, with a SHA-256.

A section is what a ``state_dict`` has: a run's checkpoint has ``model`` and ``guide``, and what a
training needs to go on.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae import __version__
from pyro_vae.errors import UserError
from pyro_vae.files import write_in_order
from pyro_vae.memory import in_words, is_out_of_memory

FORMAT = 1
"""Raised when an older version could not read what is written."""
AGAIN = "restore it from a copy, or train again"


class Damaged(UserError):
    """A checkpoint that can't be taken for what it was written as; an older one may serve. ``what``
    leaves out the advice.
    """

    aside = "damaged"
    """The ending of the name under which it is set aside."""

    def __init__(self, what: str, advice: str = AGAIN) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


class Unchecked(Damaged):
    """A checkpoint whose SHA-256 can't be read: it may be sound."""

    aside = "superseded"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The contents of a file: sections of tensors, and plain values about them (epoch, step, shape
    of an image).
    """

    sections: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def state_of(model: Any, guide: Any) -> dict[str, dict[str, Any]]:
    """The sections ``model`` and ``guide``.

    Raises:
        UserError: one of them is no ``nn.Module``, so that nothing says which tensors are its own.
    """
    sections = {}
    for role, program in (("model", model), ("guide", guide)):
        if not isinstance(program, nn.Module):
            raise UserError(
                f"the {role} is a {type(program).__name__}, not an nn.Module, so it is not "
                "known which tensors a checkpoint must have: write the program as a "
                "PyroModule, or save its parameters yourself"
            )
        sections[role] = dict(program.state_dict())
    return sections


def restore(checkpoint: Checkpoint, model: nn.Module, guide: nn.Module, name: str) -> None:
    """Copy the sections ``model`` and ``guide`` into the two modules; ``name`` is the file's, for
    the error.

    Raises:
        UserError: the tensors are not those of the modules.
    """
    restore_sections(checkpoint.sections, {"model": model, "guide": guide}, name)


def restore_sections(
    sections: Mapping[str, Mapping[str, Any]], modules: Mapping[str, nn.Module], name: str
) -> None:
    """Copy to each module the section of its name."""
    for role, program in modules.items():
        try:
            program.load_state_dict(dict(sections[role]), strict=True)
        except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
            raise UserError(
                f"{name}: its tensors differ from those of the {role} in the configuration "
                f"({lines[min(1, len(lines) - 1)].rstrip('.')[:160]}). Use the configuration "
                "and the code of the training"
            ) from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the SHA-256 (as ``sha256sum`` does), then the file: one without its SHA-256 has lost
    it, by no kill of a process.
    """
    buffer = io.BytesIO()
    held = {
        "format": FORMAT,
        "version": __version__,
        "sections": {name: dict(section) for name, section in checkpoint.sections.items()},
        "metadata": dict(checkpoint.metadata),
    }
    try:
        torch.save(held, buffer)
    except RuntimeError as error:  # torch's words where a buffer in memory can't grow
        if "unexpected pos" not in str(error):
            raise
        raise MemoryError(f"no room for a copy of {path.name}") from error
    content = buffer.getvalue()
    digest = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode()
    write_in_order({manifest(path): digest, path: content})


def load(path: Path) -> Checkpoint:
    """Read a file that `save` wrote; its tensors are on the CPU. Nothing in the file is run.

    Raises:
        Damaged: the file is absent, damaged or something else.
        Unchecked: its SHA-256 can't be read.
        UserError: it was written by a newer version.
    """
    try:
        if not path.is_file():
            raise Damaged(
                f"{path}: {'not a file' if os.path.lexists(path) else 'no such checkpoint'}"
            )
        expected, content = digest_of(path), path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path}: can't be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise Damaged(f"{path}: damaged, its SHA-256 is not the one in {manifest(path).name}")
    _refuse_bomb(path, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at a file that is not its own
            held = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch's own text advises to load without the safeguard
        if is_out_of_memory(error):
            raise
        raise Damaged(
            f"{path}: not a checkpoint of pyro_vae (it has other objects in it than tensors and "
            "plain values)"
        ) from error
    sections = held.get("sections") if isinstance(held, dict) else None
    if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()):
        raise Damaged(f"{path}: not a checkpoint of pyro_vae (it has no sections)")
    _check_format(path, held)
    metadata = held.get("metadata", {})
    return Checkpoint(sections, metadata if isinstance(metadata, dict) else {})


def _refuse_bomb(path: Path, content: bytes) -> None:
    """A checkpoint packs nothing: what would unpack to more than the file has is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError):
        return  # `torch.load` says so
    if unpacked > len(content):
        raise Damaged(
            f"{path}: not a checkpoint of pyro_vae (it would unpack to {in_words(unpacked)}, "
            "but a checkpoint is not compressed)"
        )


def _check_format(path: Path, held: Mapping[str, Any]) -> None:
    number, writer = held.get("format"), held.get("version")
    if type(number) is not int or number < 1:
        raise Damaged(f"{path}: not a checkpoint of pyro_vae (its format is {number!r})")
    if number > FORMAT:
        wanted = (
            f"pyro-vae {writer} or later"
            if isinstance(writer, str)
            else "the version that wrote it"
        )
        raise UserError(
            f"{path}: written in format {number}, but this version, {__version__}, reads format "
            f"{FORMAT}: install {wanted}"
        )


# ----
# Several in a folder: the last ones, and the best


def manifest(path: Path) -> Path:
    """The file next to ``path`` that has its SHA-256."""
    return path.with_name(path.name + ".sha256")


def digest_of(path: Path) -> str:
    """The SHA-256 that was written for ``path``, hexadecimal.

    Raises:
        Unchecked: there is none that can be read.
    """
    beside = manifest(path)
    try:
        if beside.is_file():
            return next(iter(beside.read_text(errors="replace").split()), "")
        why = "is not a file" if os.path.lexists(beside) else "is missing"
    except OSError as error:
        why = f"can't be read ({error.strerror})"
    raise Unchecked(
        f"{path}: its SHA-256 ({beside.name}) {why}, so it can't be checked", _write_it(path.name)
    )


def _write_it(name: str) -> str:
    return (
        "restore it from a copy; or, where you trust the file, "
        f"`sha256sum {name} > {name}.sha256` in its folder"
    )
