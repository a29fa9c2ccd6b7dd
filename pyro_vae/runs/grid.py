"""The grid of a sweep: training options with several values, combined.

A grid file is TOML. Its top level has the options of `pyro-vae train`; one whose value is a list is
crossed with the others. Each ``[[cell]]`` table adds options of its own to those of the top level,
for what is no cross product.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pyro_vae.errors import UserError
from pyro_vae.runs.config_file import read_toml, typed
from pyro_vae.runs.options import Train

LONGEST_NAME = 80
"""Letters of a cell's folder; a longer name ends in a digest."""


@dataclass(frozen=True)
class Cell:
    """One training of a sweep, and the options by which it differs from the others."""

    options: Train
    varied: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What distinguishes it from the other cells, in letters that serve as a folder's name."""
        words = [
            f"{name}{value}" if isinstance(value, int | float) else str(value)
            for name, value in self.varied.items()
        ]
        name = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-") or "cell"
        if len(name) <= LONGEST_NAME:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return f"{name[: LONGEST_NAME - 9]}-{digest}"

    @property
    def method(self) -> tuple[tuple[str, str], ...]:
        """The varied options but for the seed: cells of one method differ by chance alone."""
        return tuple((name, str(value)) for name, value in self.varied.items() if name != "seed")


def read_grid(path: Path) -> list[dict[str, Any]]:
    """The option tables of a grid file, one for each ``[[cell]]``, or one.

    Raises:
        UserError: it can't be read, or ``cell`` is something else than tables.
    """
    held = read_toml(path)
    tables = held.pop("cell", [{}])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise UserError(f"{path}: cell: expected tables, each after a line [[cell]]")
    return [{**held, **table} for table in tables]


def cells(tables: Sequence[Mapping[str, Any]], of: str = "sweep") -> list[Cell]:
    """All cells of these tables: in each, options that have several values are crossed.

    Args:
        tables: option -> value, or a list or tuple of values.
        of: where they come from, for messages.

    Raises:
        UserError: an unknown option, a value of another type or out of its range, an option without
            a value, or one cell twice.
    """
    every: list[dict[str, Any]] = []
    for table in tables:
        crossed = {
            name.replace("-", "_"): value if isinstance(value, list | tuple) else [value]
            for name, value in table.items()
        }
        if empty := [name for name, values in crossed.items() if not values]:
            raise UserError(f"{of}: {empty[0]} has no value: give at least one, or leave it out")
        every += [dict(zip(crossed, values, strict=True)) for values in product(*crossed.values())]
    found = []
    for given in every:
        options = Train(**typed(given, of)).decided()
        options.check()
        found.append(options)
    names = [
        name
        for name in dict.fromkeys(name for given in every for name in given)
        if len({getattr(options, name) for options in found}) > 1
    ]
    made = [Cell(each, {name: getattr(each, name) for name in names}) for each in found]
    seen: dict[str, Cell] = {}
    for cell in made:
        if cell.name in seen:
            raise UserError(
                f"{of}: cell {cell.name} is there twice: leave one out, because each cell has a "
                "folder of that name"
            )
        seen[cell.name] = cell
    return made
