"""The page of plots of an estimate of log p(x): K-curve, k̂, ESS, worst images."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation.result import SOUND_ESS, SOUND_KHAT
from pyro_vae.formatting import figure as number
from pyro_vae.formatting import quantity
from pyro_vae.plots.figures import COLOURS, quiet, save
from pyro_vae.plots.images import DoesNotFit, picture_shape, rgb, to_pixels, value_range

if TYPE_CHECKING:
    from pyro_vae.evaluation.result import LogMarginal

DPI = 160
WORST = 10
"""Images shown: those with the lowest log p(x)."""

HIGH_KHAT = 0.7
LEAST_SPAN = 0.15
"""Nats that the axis of the K-curve spans at least: a rise of 0.05 is what the headline warns of.
"""

BLUE, RED, GREY = COLOURS[0], COLOURS[2], COLOURS[8]


def write_evaluation_page(
    path: str | Path,
    ll: LogMarginal,
    x: Tensor | None = None,
    reconstructions: Tensor | None = None,
) -> Path:
    """Write `evaluation_figure` as a PNG; the file appears whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a picture's name ends in .png")
    return save(evaluation_figure(ll, x, reconstructions), path, DPI)


def evaluation_figure(
    ll: LogMarginal, x: Tensor | None = None, reconstructions: Tensor | None = None
) -> Figure:
    """The K-curve, k̂ by image, the histogram of ESS, and the worst images above their
    reconstructions.

    Args:
        x: the images that ``ll`` is of, ``(N, *event_shape)``; data that are no images, or None,
            leave their row out.
        reconstructions: means of p(x | z), in the same order, ``(N, *event_shape)``.

    Raises:
        UserError: ``x`` or ``reconstructions`` are not N images.
    """
    for name, images in (("x", x), ("reconstructions", reconstructions)):
        if images is not None and len(images) != ll.num_images:
            raise UserError(f"{name} are {len(images)} images, but log p(x) is of {ll.num_images}")
    heights = [3.0]
    with suppress(DoesNotFit):
        if x is not None and picture_shape(tuple(x.shape[1:])):
            heights.append(1.6 if reconstructions is None else 2.6)
    size = 10, 6.0 if len(heights) > 1 else 3.3
    figure = Figure(figsize=size, layout="constrained")
    upper, *lower = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    if x is not None and lower:
        _worst(lower[0], ll, x, reconstructions)
    curve, khat, ess = upper.subplots(1, 3, width_ratios=(1.0, 1.25, 1.0))
    _curve(curve, ll)
    _khat(khat, ll)
    _ess(ess, ll)
    rule = f"$\\hat{{k}}$ < {SOUND_KHAT} and ESS ≥ {SOUND_ESS:.0f} ({_percent(ll.sound)} of the images)"
    words = f"dotted: the interval of one image is sound where {rule}"
    upper.supxlabel(words, fontsize=8, color=GREY)
    title = f"{ll.number(ll.label)}  est. bias {number(ll.bias, 3)}"
    figure.suptitle(title, fontsize=10)
    return figure


def _curve(axes: Axes, ll: LogMarginal) -> None:
    """Mean L_k of the first k of the same draws, on an axis of 0.1 nats or more; the band is two
    Monte Carlo errors at K.
    """
    numbers, means = list(ll.curve), list(ll.curve.values())
    axes.plot(numbers, means, "o-", color=BLUE, lw=1, ms=4)
    if np.isfinite([ll.mean, ll.se_mc]).all():
        axes.axhspan(ll.mean - 2 * ll.se_mc, ll.mean + 2 * ll.se_mc, color=BLUE, alpha=0.15, lw=0)
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
    for point in ll.curve.items():
        axes.annotate(number(point[1]), point, (0, 6), color=GREY, **style)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{k}" for k in numbers], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15)
    if np.isfinite(means).all():
        span = max(LEAST_SPAN, 1.5 * float(np.ptp(means)))
        middle = (max(means) + min(means)) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)
    axes.ticklabel_format(axis="y", useOffset=False)
    quiet(
        axes,
        f"Mean $L_k$ of the same draws (ELBO {number(ll.elbo)})",
        "draws $k$",
        "nats",
    )


def _khat(axes: Axes, ll: LogMarginal) -> None:
    """k̂ in the order of the images; constant weights (−∞) are on the lower edge, unknown ones are
    counted in the title.
    """
    khat = ll.khat.double().cpu().numpy()
    known = ~np.isnan(khat)
    lowest = float(np.nanmin(np.where(np.isfinite(khat), khat, 0.0), initial=0.0)) - 0.1
    shown = np.where(np.isneginf(khat), lowest, khat)
    high = khat > HIGH_KHAT
    size = float(np.clip(3000 / max(len(khat), 1), 2, 14))
    image = np.arange(len(khat))
    for chosen, colour in ((known & ~high, BLUE), (known & high, RED)):
        axes.scatter(image[chosen], shown[chosen], s=size, color=colour, linewidths=0, alpha=0.7)
    for level in (SOUND_KHAT, HIGH_KHAT):
        axes.axhline(level, color=GREY, lw=0.8, ls=":" if level == SOUND_KHAT else "--")
    axes.set_ylim(
        lowest - 0.1, max(1.0, float(np.max(shown[known & np.isfinite(shown)], initial=0.0)) + 0.1)
    )
    if np.isneginf(khat).any():
        axes.set_yticks([lowest, 0.0, SOUND_KHAT, HIGH_KHAT, 1.0], ["−∞", "0", "0.5", "0.7", "1"])
    words = f"$\\hat{{k}}$ by image: {_percent(high[known])} above {HIGH_KHAT}"
    if not known.all():
        words += f", {int((~known).sum())} unknown"
    quiet(axes, words, "image", "$\\hat{k}$ of its weights")


def _ess(axes: Axes, ll: LogMarginal) -> None:
    """Histogram of the weights' effective sample size, on a logarithmic axis from 1 to K."""
    ess = ll.ess.double().cpu().numpy()
    ess = ess[np.isfinite(ess)]
    edges = np.geomspace(1, max(ll.num_samples, 2) * 1.0001, 41)
    axes.hist(np.clip(ess, 1, ll.num_samples), bins=edges.tolist(), color=BLUE)
    axes.set_xscale("log")
    if len(ess):
        axes.axvline(float(np.median(ess)), color=RED, lw=1)
    axes.axvline(SOUND_ESS, color=GREY, lw=0.8, ls=":")
    words = f"ESS of {ll.num_samples} draws" + (
        f": median {np.median(ess):.0f} (red)" if len(ess) else ""
    )
    quiet(axes, words, "effective sample size", "images")


def _worst(figure: SubFigure, ll: LogMarginal, x: Tensor, reconstructions: Tensor | None) -> None:
    order = torch.argsort(ll.log_px.cpu().nan_to_num(nan=-torch.inf))[:WORST]
    values = value_range(x)
    rows = [to_pixels(x[order], values)]
    if reconstructions is not None:
        rows.append(to_pixels(reconstructions.reshape(x.shape)[order], values))
    panels = figure.subplots(len(rows), WORST, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    trusted = ll.sound
    for column, image in enumerate(order.tolist()):
        for row, pixels in enumerate(rows):
            panels[row, column].imshow(rgb(pixels[column]), interpolation="nearest")
        khat = float(ll.khat[image])
        words = f"#{image}\n{number(float(ll.log_px[image]), 1)} ± {float(ll.se[image]):.2f}\n$\\hat{{k}}$ = {_short(khat)}"
        panels[0, column].set_title(
            words, fontsize=7, color="black" if trusted[image] else RED, linespacing=1.3
        )
    below = ", below them the means of $p(x|z)$" if reconstructions is not None else ""
    note = "  (red: the ± can't be read)" if not trusted[order.numpy()].all() else ""
    figure.suptitle(f"Lowest {quantity(ll.protocol)}{below}{note}", fontsize=9)


def _percent(chosen: NDArray[np.bool_]) -> str:
    return f"{chosen.mean():.1%}" if len(chosen) else "none"


def _short(khat: float) -> str:
    return "unknown" if np.isnan(khat) else "−∞" if np.isneginf(khat) else number(khat)
