"""The pictures of a run: a page is one function from a `Subject` to a figure, and one line in
`PAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vae.analysis.generate import sample
from pyro_vae.analysis.latents import whole_images
from pyro_vae.data.image_data import ImageData
from pyro_vae.data.transforms import Observed
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.plots.context import Subject
from pyro_vae.plots.figures import COLOURS, quiet, samples_figure, save, side_by_side, told, zoom
from pyro_vae.plots.image_pages import classes, reconstructions, samples
from pyro_vae.plots.images import DoesNotFit, picture_shape, value_range
from pyro_vae.plots.latent_pages import interpolation, latent, manifold, traversals
from pyro_vae.plots.restoration_pages import denoising, imputation


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


PAGES: dict[str, Callable[[Subject], Figure]] = {
    "reconstructions": reconstructions,
    "samples": samples,
    "classes": classes,
    "curves": curves,
    "latent": latent,
    "manifold": manifold,
    "interpolation": interpolation,
    "traversals": traversals,
    "imputation": imputation,
    "denoising": denoising,
}


def subject_of(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    observed: Observed,
    data: ImageData,
    history_rows: list[dict[str, Any]],
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Subject:
    """A run's pair with its test set, whose labels are left out where they are not the images'."""
    labels: Tensor | None = data.test_labels
    if labels is not None and len(labels) != len(observed.x_test):
        labels = None
    return Subject(
        model,
        guide,
        observed.x_test,
        labels,
        data.name,
        history_rows,
        seed,
        device,
        data.classes,
        data.table,
    )


def write_pictures(
    folder: Path,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    observed: Observed,
    data: ImageData,
    history_rows: list[dict[str, Any]],
    seed: int = 0,
    pages: Sequence[str] | None = None,
    device: str | torch.device = "auto",
) -> list[Path]:
    """Write ``PAGE.png`` for each of ``pages``, or for all that there are of this run; the files,
    in order.

    Args:
        history_rows: ``{"epoch": …, "train": {…}, "valid": {…} or None}``, each with elbo,
            reconstruction and kl.

    Raises:
        UserError: an unknown page, or one that was asked for and does not fit the run
            (`DoesNotFit`).
    """
    chosen = _known(pages)
    subject = subject_of(model, guide, observed, data, history_rows, seed, device)
    written = []
    for name in chosen:
        figure = _drawn(name, subject)
        if isinstance(figure, Figure):
            written.append(save(figure, folder / f"{name}.png"))
        elif pages is not None:
            raise figure
    return written


def write_beside(
    path: Path, subjects: Mapping[str, Subject], pages: Sequence[str] | None = None
) -> Path:
    """Write one picture: a column for each run, by its name, and a row for each page that fits one
    of them.

    Raises:
        UserError: an unknown page, or one that was asked for and fits none of the runs
            (`DoesNotFit`).
    """
    rows = []
    for name in _known(pages):
        row = [_drawn(name, subject) for subject in subjects.values()]
        reasons = [each for each in row if isinstance(each, DoesNotFit)]
        if len(reasons) < len(row):
            rows.append([each if isinstance(each, Figure) else told(str(each)) for each in row])
        elif pages is not None:
            raise reasons[0]
    return save(side_by_side(rows, list(subjects)), path)


def samples_picture(
    model: Callable[..., Any],
    event_shape: tuple[int, ...],
    n: int,
    path: Path,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write a grid of ``n`` prior samples, the means of p(x | z); ``options`` are those of
    `sample`.
    """
    picture_shape(event_shape)
    options.setdefault("like", torch.zeros(1, *event_shape))
    images = whole_images(sample(model, n, seed=seed, **options), event_shape)
    return save(samples_figure(images, value_range(images)), path)


def _known(pages: Sequence[str] | None) -> list[str]:
    """The pages asked for, by default all; a ``UserError`` for an unknown one."""
    for name in pages or ():
        if name not in PAGES:
            raise UserError(did_you_mean("page", name, PAGES))
    return list(PAGES) if pages is None else list(pages)


OF_ANY_DATA = ("curves", "latent")
"""The pages that show no image."""


def _drawn(name: str, subject: Subject) -> Figure | DoesNotFit:
    """The page, or why there is none."""
    try:
        if subject.table and name not in OF_ANY_DATA:
            raise DoesNotFit(f"{subject.name} is a table: its rows are not images")
        return PAGES[name](subject)
    except UserError as reason:  # DoesNotFit, or a guide that has no q(z | x) of the images shown
        return DoesNotFit(f"no page {name!r}: {str(reason).splitlines()[0]}")
