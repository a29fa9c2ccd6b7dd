"""The papers' figures, in the papers' axes: each drawn from what the runs wrote, as far as they
have come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import pyro_vae as pv
from benchmarks.reproduce.cells import Cell
from benchmarks.reproduce.tables import (
    FIGURE_3_MILLIONS,
    FIGURE_3_SIZES,
    FREY_LATENTS,
    MNIST_LATENTS,
)
from pyro_vae.plots import pages as plotting
from pyro_vae.plots.figures import COLOURS, DPI


def lower_bounds(cells: Mapping[str, Cell], label: str) -> Figure | None:
    """AEVB, figure 2: the lower bound of training and held-out images against the training samples
    evaluated.
    """
    panels = [(f"MNIST, $N_z$ = {z}", f"aevb-mnist-z{z}") for z in MNIST_LATENTS]
    panels += [(f"Frey faces, $N_z$ = {z}", f"aevb-frey-z{z}") for z in FREY_LATENTS]
    if not any(name in cells and cells[name].begun for _, name in panels):
        return None
    columns = len(MNIST_LATENTS)
    figure = Figure(figsize=(2.6 * columns, 5), layout="constrained")
    for place, (title, name) in enumerate(panels):
        axes = figure.add_subplot(2, columns, place + 1)
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log")
        axes.tick_params(labelsize=7)
        if place % columns == 0:
            axes.set_ylabel("$\\mathcal{L}$, nats an image", fontsize=8)
        axes.set_xlabel("training samples evaluated", fontsize=8)
        if name not in cells or not cells[name].begun:
            axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="grey")
            continue
        rows, batch = cells[name].run.rows(), cells[name].options.batch_size
        for part, style, words in (("train", "-", "train"), ("valid", "--", "held out")):
            curve = [
                (row["step"] * batch, row[part]["elbo"])
                for row in rows
                if row[part] and row[part]["elbo"] is not None
            ]
            if curve:
                colour, mark = COLOURS[0 if part == "train" else 2], "." if len(curve) < 5 else ""
                axes.plot(
                    *zip(*curve, strict=True), style + mark, color=colour, lw=1.2, label=words
                )
        _hold(axes, [row["train"]["elbo"] for row in rows])
        axes.legend(fontsize=7, loc="lower right")
    figure.suptitle(f"AEVB, figure 2: single-sample lower bound; budget: {label}", fontsize=10)
    return figure


def marginal_likelihoods(cells: Mapping[str, Cell], label: str) -> Figure | None:
    """AEVB, figure 3: log p(x) of test images against the training samples, by IW-5000 and by AIS."""
    figure, drawn = Figure(figsize=(8, 3.4), layout="constrained"), False
    for place, size in enumerate(FIGURE_3_SIZES):
        axes = figure.add_subplot(1, len(FIGURE_3_SIZES), place + 1)
        axes.set_title(f"$N_{{train}}$ = {size}", fontsize=9)
        axes.set_xlabel("training samples evaluated (millions)", fontsize=8)
        axes.set_ylabel("$\\log p(x)$ of test images, nats", fontsize=8)
        axes.tick_params(labelsize=7)
        for method, colour, words in (
            ("iw", COLOURS[0], "IW-{}"),
            ("ais", COLOURS[2], "AIS, {} chains"),
        ):
            points = []
            for millions in FIGURE_3_MILLIONS:
                cell = cells.get(f"aevb-n{size}-{millions}m")
                if cell is not None and (ll := cell.estimate(method)) is not None:
                    samples = (
                        cell.run.results()["training"]["steps"] * cell.options.batch_size / 1e6
                    )
                    points.append((samples, ll.mean, ll.se_mc, words.format(ll.num_samples)))
            if points:
                x, y, error, names = zip(*points, strict=True)
                axes.errorbar(
                    x, y, error, fmt="o-", ms=3, lw=1, capsize=2, color=colour, label=names[0]
                )
                axes.legend(fontsize=7, loc="lower right")
                drawn = True
    figure.suptitle(
        "AEVB, figure 3: lower bounds on the marginal likelihood, bars: Monte Carlo; budget: "
        f"{label}",
        fontsize=9,
    )
    return figure if drawn else None


DRAW: dict[str, Callable[[Mapping[str, Cell], str], Figure | None]] = {
    "lower_bounds": lower_bounds,
    "marginal_likelihoods": marginal_likelihoods,
}


def pages(path: Path, shown: Sequence[Cell], names: Sequence[str]) -> Path:
    """Pages of `pyro-vae plot`, one column a cell."""
    subjects = {}
    for cell in shown:
        model, guide = pv.load(cell.run.folder)
        given, seed = cell.experiment(), cell.options.seed
        subjects[cell.name] = plotting.subject_of(
            model, guide, given.observed, given.data, cell.run.rows(), seed, cell.place.device
        )
    return plotting.write_beside(path, subjects, names)


def save(figure: Figure, path: Path) -> Path:
    """As a picture, over the one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def _hold(axes: Any, values: list[float | None]) -> None:
    """Leave the first passes out of the range, where the bound is hundreds of nats below all that
    follows.
    """
    known = sorted(value for value in values if value is not None)
    if len(known) > 4:
        low, high = known[len(known) // 10], known[-1]
        axes.set_ylim(low - 0.2 * (high - low) - 1, high + 0.1 * (high - low) + 1)
