"""The parts of each slot, for ``pyro-vae list``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from pyro_vae.choices.lookup import entries, members
from pyro_vae.choices.specs import write


@dataclass(frozen=True)
class Part:
    """A line of ``pyro-vae list``: the name, the docstring's first line, and the arguments with
    their defaults.
    """

    name: str
    summary: str
    arguments: str


def describe(slot: str) -> list[Part]:
    """The slot's parts in their namespace's order, then the installed entry points (which are not
    imported).
    """
    parts = members(slot).items()
    own = [
        Part(name, _summary(part), "" if slot == "data" else _arguments(part))
        for name, part in parts
    ]
    return own + [Part(entry.name, f"installed: {entry.value}", "") for entry in entries(slot)]


def _summary(part: Any) -> str:
    """The docstring's first paragraph; a class without one inherits none."""
    text = part if isinstance(part, str) else (getattr(part, "__doc__", None) or "")
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split()).replace("``", "`")


def _arguments(part: Any) -> str:
    return f"({', '.join(map(_argument, inspect.signature(part).parameters.values()))})"


def _argument(parameter: inspect.Parameter) -> str:
    stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (
        parameter.kind is parameter.VAR_KEYWORD
    )
    default = "" if parameter.default is parameter.empty else f"={write(parameter.default)}"
    return f"{stars}{parameter.name}{default}"
