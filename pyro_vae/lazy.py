"""Names of a package that are loaded when they are first used: its stub has them, each once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def homes(file: str) -> dict[str, str]:
    """Each name of the stub next to this file, ``__init__.pyi``, with the module that has it.

    One import is on each line, as ruff writes them; a parser would be slow to load.
    """
    with open(f"{file}i", encoding="utf-8") as stub:
        lines = [line.split() for line in stub if line.startswith("from ")]
    return {name: module for _, module, _, name, *_ in lines}


def loaded(package: str, home: Mapping[str, str], name: str) -> Any:
    """The package's attribute of this name: a part of a module, or a module of the package."""
    if name not in home:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if home[name] == package:
        return import_module(f"{package}.{name}")
    return getattr(import_module(home[name]), name)
