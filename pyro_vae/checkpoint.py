"""Checkpoints: named sections of tensors in one file, written whole or not at all, with a SHA-256 beside it.

A section is what a ``state_dict`` holds: ``model`` and ``guide`` are always there; a resumable training may add others.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae.errors import UserError
from pyro_vae.files import write_atomically

FORMAT = 1
"""Raised when an older version could not read what is written."""

SUFFIX = ".pt"
AGAIN = "restore it from a copy, or train again"


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
    for role, program in (("model", model), ("guide", guide)):
        try:
            program.load_state_dict(dict(checkpoint.sections[role]), strict=True)
        except (RuntimeError, KeyError) as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise UserError(
                f"{name}: its tensors are not those of the {role} that the configuration describes "
                f"({lines[min(1, len(lines) - 1)].rstrip('.')[:160]}); use the configuration and the code that it was trained with"
            ) from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, then its SHA-256 (as ``sha256sum`` does): a file without one is not a checkpoint yet."""
    buffer = io.BytesIO()
    torch.save(
        {"format": FORMAT, "sections": _plain(checkpoint.sections), "metadata": dict(checkpoint.metadata)}, buffer
    )
    content = buffer.getvalue()
    write_atomically(path, content)
    write_atomically(manifest(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())


def load(path: Path) -> Checkpoint:
    """Read a file that `save` wrote; its tensors are on the CPU. Nothing in the file is run.

    Raises:
        UserError: the file or its SHA-256 is absent, or the file is damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if not manifest(path).is_file():
        raise UserError(f"{path}: its SHA-256 ({manifest(path).name}) is missing, so it can't be checked; {AGAIN}")
    content = path.read_bytes()
    expected = manifest(path).read_text(errors="replace").split(" ")[0]
    if hashlib.sha256(content).hexdigest() != expected:
        raise UserError(f"{path}: damaged, for its SHA-256 is not the one in {manifest(path).name}; {AGAIN}")
    try:
        held = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch's own text advises to load without the safeguard
        raise UserError(
            f"{path}: not a checkpoint of pyro_vae (it holds other things than tensors and plain values); {AGAIN}"
        ) from error
    if not isinstance(held, dict) or not isinstance(held.get("sections"), dict):
        raise UserError(f"{path}: not a checkpoint of pyro_vae (it has no sections); {AGAIN}")
    if held.get("format") != FORMAT:
        raise UserError(
            f"{path}: written in format {held.get('format')!r}, and this version reads {FORMAT}: use the version of pyro_vae "
            "that the run's environment.json names"
        )
    return Checkpoint(held["sections"], held.get("metadata", {}))


def manifest(path: Path) -> Path:
    """The file beside ``path`` that holds its SHA-256."""
    return path.with_name(path.name + ".sha256")


def latest(folder: Path) -> Path:
    """The last checkpoint in the order of names that has its SHA-256.

    Raises:
        UserError: there is none.
    """
    found = sorted((path for path in folder.glob(f"*{SUFFIX}") if manifest(path).is_file()), key=lambda path: path.stem)
    if not found:
        raise UserError(f"{folder}: no checkpoint in it (a training that was stopped before its first epoch has none)")
    return found[-1]


def _plain(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(section) for name, section in sections.items()}
