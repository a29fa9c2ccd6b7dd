"""Dry run of a sweep: its cells with their time, what is refused, or a command for each."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from pyro_vae.devices import find_device
from pyro_vae.errors import UserError
from pyro_vae.runs.config_file import stored_names
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.fit_run import dry_run, fit_arguments
from pyro_vae.runs.grid import Cell
from pyro_vae.runs.options import Train
from pyro_vae.signals import Failure
from pyro_vae.table import Table
from pyro_vae.training.fit import fit
from pyro_vae.training.settings import flag

LOOKED_AT, STEPS = 10.0, 20
"""Of a dry run: the seconds that it takes in all to time cells, and the steps of each."""


def preview(every: Sequence[Cell], out: Path) -> Table:
    """The cells, what each would take, and why it would be refused: nothing is trained or written.

    A few steps of each method are timed, in a few seconds in all; the evaluation is not.
    """
    found: dict[Any, tuple[float, str]] = {}
    started, rows, refusals, total = time.monotonic(), [], [], 0.0
    for cell in every:
        if cell.method not in found:
            found[cell.method] = _looked_at(cell, time.monotonic() - started < LOOKED_AT)
        seconds, refused = found[cell.method]
        begun = (out / cell.name / "config.toml").is_file()
        state = "refused" if refused else "resumed or done" if begun else "new"
        rows.append((cell.name, state, f"about {seconds:.0f} s" if isfinite(seconds) else "–"))
        total += 0.0 if refused or begun else seconds
        if refused:
            refusals.append(f"{cell.name}: {refused}")
    length = f"about {total:.0f} s" if isfinite(total) else "an unknown time"
    notes = (f"{len(every)} cells in {out}; the training of the new ones takes {length} in all",)
    return Table(("cell", "state", "training"), tuple(rows), notes=(*notes, *refusals))


def _looked_at(cell: Cell, timed: bool) -> tuple[float, str]:
    """The estimated seconds of a cell's training, and why it is refused."""
    options = cell.options
    try:
        device = find_device(options.device)
        experiment = prepare(options)
        experiment.images("test", options.eval_images)
        dry_run(experiment, device)
        if not timed:
            return nan, ""
        quick: dict[str, Any] = {"num_steps": STEPS, "x_valid": None, "progress": False}
        quick["compile"] = "off" if options.compile == "off" else "graph"
        history = fit(**{**fit_arguments(experiment, device), **quick})
    except (UserError, Failure) as reason:
        return nan, " ".join(str(reason).split())
    passes = -(-len(experiment.train_rows) // options.batch_size)
    steps = options.steps or (options.epochs or 1) * passes
    return history.seconds / history.num_steps * steps, ""


def commands(every: Sequence[Cell], out: Path) -> list[str]:
    """Each cell as a `pyro-vae train` command, for a scheduler of one's own."""
    lines, plain = [], Train().decided()
    for cell in every:
        words = ["pyro-vae", "train", "--out", str(out / cell.name)]
        for name in stored_names():
            value = getattr(cell.options, name)
            if isinstance(value, bool) and value != getattr(plain, name):
                words.append(flag(name) if value else flag(f"no_{name}"))
            elif value is not None and value != getattr(plain, name):
                words += [flag(name), str(value)]
        lines.append(shlex.join(words))
    return lines
