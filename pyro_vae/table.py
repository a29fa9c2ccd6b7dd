"""Tables of short texts: for a terminal, a notebook, Markdown, CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pyro_vae.formatting import Printed


@dataclass(frozen=True)
class Table(Printed):
    """Rows of texts under their columns' names, and sentences that belong below."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.title] if self.title else []
        lines += aligned([self.columns, *self.rows])
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [_piped(self.columns), "|" + "---|" * len(self.columns), *map(_piped, self.rows)]
        return "\n".join([*lines, "", *self.notes, ""])

    def to_csv(self) -> str:
        """Comma-separated, the columns' names first, a minus as programs read it; without title and
        notes.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue().replace("−", "-")

    def to_html(self) -> str:
        """An HTML table, as a notebook shows it."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        title = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        below = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"

    def _repr_html_(self) -> str:
        return self.to_html()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    # a combining letter, as in k̂, has no width of its own
    widths = [
        max(len(row[i]) - row[i].count("\u0302") for row in rows) for i in range(len(rows[0]))
    ]
    lines = []
    for first, *others in rows:
        cells = [
            cell.rjust(width + cell.count("\u0302"))
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
