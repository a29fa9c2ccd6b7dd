"""The page of training curves."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.plots.context import Subject
from pyro_vae.plots.figures import COLOURS, quiet, zoom
from pyro_vae.plots.images import DoesNotFit


def curves(subject: Subject) -> Figure:
    """ELBO, reconstruction and KL by epoch, on the training and the validation set."""
    rows = subject.history
    if not rows:
        raise DoesNotFit("no epoch was finished")
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {
        "elbo": "ELBO",
        "reconstruction": r"$\mathrm{E}_q\,\log p(x|z)$",
        "kl": r"$\mathrm{KL}(q(z|x)\,\|\,p(z))$",
    }
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for part, colour, label in (
            ("train", COLOURS[0], "training"),
            ("valid", COLOURS[6], "validation"),
        ):
            points = [(row["epoch"], row[part][key]) for row in rows if row.get(part)]
            if points:
                style = {"lw": 1, "ms": 2.5, "marker": "o" if len(points) < 15 else ""}
                axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        zoom(axes)
        quiet(axes, title, "epoch", "nats" if axes is panels[0] else "")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, fontsize=8)
    return figure
