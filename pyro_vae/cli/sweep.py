"""`pyro-vae sweep`: shows the cells, prints them as commands, or trains and ranks them."""

from __future__ import annotations

import sys
from typing import Any

from pyro_vae.runs import preview
from pyro_vae.runs import sweep as sweeping
from pyro_vae.signals import Failure


def run(options: Any) -> None:
    """What the options ask for; a sweep in which every cell failed is a failure."""
    grid = options.grid if options.grid is not None else {}
    every = sweeping.planned(grid, options.given)
    if options.on == "print":
        print("\n".join(preview.commands(every, options.out)))
    elif options.dry_run:
        sweeping.check_folders(every, options.out)
        print(preview.preview(every, options.out))
    else:
        found = sweeping.sweep(
            grid,
            out=options.out,
            jobs=options.jobs,
            on=options.on,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
            **options.given,
        )
        print("\n\n".join(_as_asked(table, options.format) for table in found.tables()))
        if all(each.failed for each in found.outcomes):
            raise Failure("no cell was trained: see the lines above")


def _as_asked(table: Any, form: str) -> str:
    return str(table) if form == "text" else str(getattr(table, f"to_{form}")()).rstrip("\n")
