"""The table of runs below a folder: data, parts, latest log p(x)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_vae.choices.specs import parse
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.formatting import figure
from pyro_vae.runs.config_file import stored_names
from pyro_vae.runs.run import Run, shown
from pyro_vae.table import Table

FIGURES = {
    "log_px": "mean",
    "se_mc": "se_mc",
    "se_total": "se_total",
    "elbo": "elbo",
    "draws": "num_samples",
    "images": "num_images",
    "time": "time",
}
"""Of a run's latest evaluation of its test set, by the names that they have in results.json."""

COLUMNS = {
    "run": "run",
    "data": "data",
    "model": "model",
    "likelihood": "likelihood",
    "guide": "guide",
    "objective": "objective",
    "log_px": "log p(x)",
    "se_mc": "± draws",
    "se_total": "± images",
    "elbo": "ELBO",
    "time": "when",
    "seconds": "s trained",
}
"""What the table shows; --json and --csv have all options and figures."""


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """Every run below the folder, by its path: its options, its figures (None where it has none
    yet), and ``note``, why it can't be read.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; runs are in {Path('runs')} by default")
    return [_row(Run(path.parent)) for path in sorted(folder.expanduser().rglob("config.toml"))]


def _row(run: Run) -> dict[str, Any]:
    row = dict.fromkeys(("run", *stored_names(), *FIGURES, "seconds", "note"))
    row["run"] = shown(run.folder)
    try:
        options = asdict(run.options())
        row |= {name: options[name] for name in stored_names()}
        results = run.results()
        row["seconds"] = (results.get("training") or {}).get("seconds")
        scored = [each for each in results.get("evaluations", []) if each.get("split") == "test"]
        found = scored[-1] if scored else {}
        row |= {name: found.get(key) for name, key in FIGURES.items()}
    except (UserError, AttributeError, TypeError) as error:
        row["note"] = f"can't be read: {error}"
    return row


def chosen(rows: Sequence[dict[str, Any]], where: Iterable[str], sort: str) -> list[dict[str, Any]]:
    """The rows of which each ``NAME=VALUE`` is true, in the order of ``sort``: the largest number
    first, texts from A to Z, and last those that have none.

    Raises:
        UserError: a name that no run has, or a condition without ``=``.
    """
    names = ("run", *stored_names(), *FIGURES, "seconds")
    for condition in where:
        name, equals, value = condition.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(f'--where {condition!r}: expected NAME=VALUE, such as "guide=IAF"')
        if name not in names:
            raise UserError(did_you_mean("name in --where", name, names))
        rows = [row for row in rows if _is(row[name], value.strip())]
    key = sort.replace("-", "_")
    if key not in names:
        raise UserError(did_you_mean("column to sort by", sort, names))
    there = [row for row in rows if row[key] is not None]
    numbers = all(isinstance(row[key], int | float) for row in there)
    ordered = sorted(there, key=lambda row: row[key] if numbers else str(row[key]), reverse=numbers)
    return [*ordered, *(row for row in rows if row[key] is None)]


def _is(found: Any, wanted: str) -> bool:
    """Whether an option is what was asked for: ``IAF`` is any call of it."""
    if str(found) == wanted:
        return True
    if isinstance(found, int | float):
        return wanted.replace(".", "", 1).isdigit() and float(wanted) == found
    return isinstance(found, str) and found.startswith(f"{wanted}(") and parse(found).name == wanted


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line each, and below it what is to be said of some."""
    cells = tuple(tuple(_cell(row[name]) for name in COLUMNS) for row in rows)
    notes = tuple(f"{row['run']}: {row['note']}" for row in rows if row["note"])
    return Table(tuple(COLUMNS.values()), cells, notes=notes)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return figure(value) if isinstance(value, float) else str(value)


def whole_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All that is known of each, unrounded; an empty text where nothing is."""
    cells = tuple(tuple("" if v is None else str(v) for v in row.values()) for row in rows)
    return Table(tuple(rows[0]) if rows else (), cells)
