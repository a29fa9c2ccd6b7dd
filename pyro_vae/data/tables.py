"""Tables of numbers in text, `.csv` and `.tsv`, one row an image, read by pandas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.data.local_files import Source
from pyro_vae.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, source: Source) -> dict[str, Any]:
    """The columns of numbers as `images` (N, D), in the file's order, and the label column as
    `labels`.

    Columns of integers 0 … 255 alone are grey levels, all others floats. A first line of numbers is
    a row, but for the names 0, 1, 2, … that pandas gives.
    """
    source.refuse(path, "images_key")
    table = _read(path)
    labels = None
    if source.label is not None:
        labels = _column(path, table, source.label)
        table = table.drop(columns=[source.label])
        if labels.isna().any():
            raise UserError(
                f"{path}: row {_first(labels.isna())} has no {source.label}; remove the row"
            )
    if source.columns is not None:
        table = table[_chosen(path, list(table.columns), source.columns)]
    _check_numbers(path, table, source.missing)
    values = table.to_numpy()
    if not ((values == np.floor(values)) & (values >= 0) & (values <= 255)).all():
        values = values.astype(np.float32)
    elif values.dtype.kind == "f":
        values = values.astype(np.uint8)
    return {"images": values, "labels": None if labels is None else _plain(labels)}


def _read(path: Path) -> pandas.DataFrame:
    import pandas
    from pandas.errors import EmptyDataError, ParserError  # type: ignore[import-untyped]

    options: dict[str, Any] = {"sep": SEPARATORS[path.suffix.lower()], "skipinitialspace": True}
    try:
        first = pandas.read_csv(path, nrows=1, header=None, dtype=str, **options).iloc[0].tolist()
        header = None if _is_row(first) else "infer"
        table = pandas.read_csv(path, header=header, index_col=False, **options)
    except (EmptyDataError, ParserError, OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(
            f"{path}: not a table that can be read ({one_line(error)}); expected a line of names, "
            "then a line of values for each row"
        ) from error
    table.columns = [str(name) for name in table.columns]
    return table


def _is_row(cells: list[Any]) -> bool:
    """Whether the first line has numbers, and not the names that a table without names is given."""
    try:
        numbers = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        return False
    return numbers != list(range(len(numbers)))


def _column(path: Path, table: pandas.DataFrame, name: str) -> pandas.Series:
    if name not in table.columns:
        raise UserError(f"{path}: {did_you_mean('column', name, table.columns)}")
    return table[name]


def _chosen(path: Path, names: list[str], columns: str) -> list[str]:
    """The columns that `a,b,first:last` names."""
    if columns in names:
        return [columns]
    chosen: list[str] = []
    for part in columns.split(","):
        word = part.strip()
        ends = [word] if word in names else [each.strip() for each in word.split(":")]
        for end in ends:
            if end not in names:
                raise UserError(f"{path}: {did_you_mean('column', end, names)}")
        if len(ends) > 2 or names.index(ends[-1]) < names.index(ends[0]):
            raise UserError(f"{path}: --columns {word}: expected one name, or first:last")
        chosen += names[names.index(ends[0]) : names.index(ends[-1]) + 1]
    if twice := [name for name in chosen if chosen.count(name) > 1]:
        raise UserError(f"{path}: --columns names {twice[0]!r} twice")
    return chosen


def _check_numbers(path: Path, table: pandas.DataFrame, missing: bool) -> None:
    """A `UserError` for a column of text, and for a value that is missing, unless any may be."""
    from pandas.api.types import (  # type: ignore[import-untyped]
        is_bool_dtype,
        is_numeric_dtype,
    )

    if not len(table) or not len(table.columns):
        raise UserError(f"{path}: it has no rows, or no columns, of numbers")
    for name in table.columns:
        if not is_numeric_dtype(table[name]) and not is_bool_dtype(table[name]):
            raise UserError(
                f"{path}: column {name!r} has {table[name].iloc[0]!r}, which is not a number; "
                "choose other columns with --columns, or use it as the class with --label "
                f"{name}"
            )
        wrong = np.isinf(table[name]) if missing else ~np.isfinite(table[name])
        if wrong.any():
            found = table[name].iloc[_first(wrong) - 1]
            what = "no value" if np.isnan(found) else found
            raise UserError(
                f"{path}: column {name!r} has {what} in row {_first(wrong)}; fill it, or remove "
                "the row or the column" + ", or give --missing nan" * bool(np.isnan(found))
            )
    first = table.iloc[:, 0]
    if table.columns[0].startswith("Unnamed: ") and (first == np.arange(len(table))).all():
        raise UserError(
            f"{path}: the first column has no name and only counts the rows. Write the table "
            "without it (index=False), or choose the other columns with --columns"
        )


def _first(wrong: pandas.Series) -> int:
    """The row, from 1, that has the first True."""
    return int(wrong.to_numpy().argmax()) + 1


def _plain(labels: pandas.Series) -> Any:
    """Numbers as they are, all else as text."""
    values = labels.to_numpy()
    return values if values.dtype.kind in "biuf" else labels.astype(str).to_numpy(dtype=np.str_)
