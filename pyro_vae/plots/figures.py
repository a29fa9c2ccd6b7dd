"""Figure elements: grids of images, scatter plots, curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.files import write_atomically
from pyro_vae.plots.images import Pixels, rgb, tile, to_pixels

DPI = 200
WIDTH = 1200
"""Device pixels that a grid of images is about wide: 6 inches at 200 dots an inch."""

LARGEST_PIXEL = 14
"""Device pixels to a side of one pixel of an image: a few small images make a small picture."""

COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Ten classes, distinguished by colour-blind readers too (Petroff 2021, arXiv:2107.02270)."""


def samples_figure(images: Tensor, values: tuple[float, float]) -> Figure:
    """Means of p(x | z), as near to a square as they can be laid."""
    pixels = to_pixels(images, values)
    canvas = tile(pixels, ceil(sqrt(len(pixels))), gap=max(1, pixels.shape[1] // 14))
    return grid_figure(canvas, "Means of $p(x|z)$ at samples $z$ of the prior")


def grid_figure(
    canvas: Pixels,
    title: str,
    margin: tuple[float, float] = (0.06, 0.06),
    row_labels: Sequence[tuple[float, str]] = (),
) -> Figure:
    """One array of images, each of its pixels a whole number of the picture's.

    ``margin``: inches at left and below; ``row_labels``: words to the left of the images, each with
    the row of ``canvas`` that it is centred on.
    """
    height, width = canvas.shape[:2]
    scale = min(max(1, round(WIDTH / width)), LARGEST_PIXEL)
    words = (Figure(dpi=DPI).text(0, 0, text, fontsize=8) for _, text in row_labels)
    beside = max((float(each.get_window_extent().width) / DPI for each in words), default=0.0)
    inches = (
        margin[0] + beside + 0.05 * bool(row_labels),
        margin[1],
        0.06,
        0.1 + 0.17 * (title.count("\n") + 1),
    )
    left, bottom, right, top = (round(DPI * each) for each in inches)
    size = (left + scale * width + right, bottom + scale * height + top)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    axes = figure.add_axes(
        (left / size[0], bottom / size[1], scale * width / size[0], scale * height / size[1]),
        frameon=False,
    )
    axes.imshow(rgb(canvas), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, label in row_labels:
        place = ((left - 0.05 * DPI) / size[0], (bottom + scale * (height - row)) / size[1])
        figure.text(*place, label, ha="right", va="center", fontsize=8)
    text = figure.text(
        0.5, 1 - 0.075 * DPI / size[1], title, ha="center", va="top", fontsize=9, linespacing=1.25
    )
    widest = text.get_window_extent().width / (size[0] - 0.1 * DPI)
    text.set_fontsize(9 / max(1.0, widest))
    return figure


def rows_figure(
    rows: Sequence[tuple[str, Tensor]], values: tuple[float, float], title: str, block: int = 0
) -> Figure:
    """A grid whose rows are named: each a label and its images ``(n, *event_shape)``; a gap after
    each ``block`` rows.
    """
    pixels = [to_pixels(images, values) for _, images in rows]
    height = pixels[0].shape[1]
    gap, step = max(1, height // 14), 0
    lines: list[Pixels] = []
    labels: list[tuple[float, str]] = []
    for i, ((label, _), row) in enumerate(zip(rows, pixels, strict=True)):
        line = tile(row, len(row), gap=gap)
        if lines:
            between = max(3, height // 4) if block and i % block == 0 else gap
            lines.append(np.ones_like(line, shape=(between, *line.shape[1:])))
            step += between
        labels.append((step + height / 2, label))
        lines.append(line)
        step += height
    return grid_figure(np.concatenate(lines), title, row_labels=labels)


def scatter(
    points: Tensor,
    labels: Tensor | None,
    title: str,
    names: tuple[str, str],
    class_name: Callable[[int], str] = str,
) -> Figure:
    """A scatter at equal aspect; up to ten classes in colour, each with its name at its median."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    xy = points.numpy()
    size = float(np.clip(4000 / len(xy), 1.5, 12))
    classes = [] if labels is None else labels[: len(xy)].unique().tolist()
    if 1 < len(classes) <= len(COLOURS):
        assert labels is not None
        of = labels[: len(xy)].numpy()
        colours = np.array(COLOURS)[np.searchsorted(classes, of)]
        order = np.random.default_rng(0).permutation(len(xy))  # no class is on top of the others
        axes.scatter(xy[order, 0], xy[order, 1], s=size, c=colours[order], linewidths=0, alpha=0.8)
        for label, colour in zip(classes, COLOURS, strict=False):
            axes.scatter([], [], s=18, color=colour, linewidths=0, label=class_name(label))
        _write_classes(axes, xy, of, class_name)
        figure.legend(
            title="class", loc="outside right center", frameon=False, fontsize=8, title_fontsize=8
        )
    else:
        axes.scatter(xy[:, 0], xy[:, 1], s=size, c=COLOURS[0], linewidths=0, alpha=0.6)
    axes.set_aspect("equal", adjustable="datalim")
    quiet(axes, title, *names, fontsize=9)
    if names[0].startswith("t-SNE"):  # its coordinates have no scale
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _write_classes(
    axes: Axes, xy: NDArray[np.float32], of: NDArray[np.int64], class_name: Callable[[int], str]
) -> None:
    """Each class's name at its median, unless another's is there already."""
    least = 0.04 * float(np.ptp(xy, axis=0).max())
    placed: list[NDArray[np.float32]] = []
    for label in np.unique(of):
        place = np.median(xy[of == label], axis=0)
        if all(np.hypot(*(place - other)) > least for other in placed):
            placed.append(place)
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
            halo = [withStroke(linewidth=2, foreground="white")]
            axes.annotate(class_name(int(label)), place, weight="bold", path_effects=halo, **style)


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write it as PNG: the file is whole, or the one before."""
    content = BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    return path


def zoom(axes: Axes) -> None:
    """Limits that leave out what is far beyond the rest: the first epochs, before anything is
    learnt.
    """
    lines = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    late = np.concatenate([y[ceil(len(y) / 20) if len(y) > 3 else 0 :] for y in lines])
    late = late[np.isfinite(late)]
    if len(late) and float(np.ptp(late)) > 0:
        margin = 0.06 * float(np.ptp(late))
        axes.set_ylim(late.min() - margin, late.max() + margin)


def quiet(axes: Axes, title: str, across: str, up: str = "", fontsize: int = 8) -> None:
    """Two spines, small figures, and words."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=fontsize)
    axes.set_ylabel(up, fontsize=fontsize)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def told(text: str) -> Figure:
    """A sentence in the place of a picture."""
    figure = Figure(figsize=(3, 1), dpi=DPI)
    figure.text(0.5, 0.5, fill(text, 45), ha="center", va="center", fontsize=8)
    return figure


def side_by_side(cells: Sequence[Sequence[Figure]], names: Sequence[str]) -> Figure:
    """Figures in rows and columns as one, each drawn as it is alone; the columns' names above."""
    drawn = [[_rendered(figure) for figure in row] for row in cells]
    widths = [max(cell.shape[1] for cell in column) for column in zip(*drawn, strict=True)]
    gap, head = DPI // 8, round(0.3 * DPI)
    lines = [np.full((head, sum(widths) + gap * len(widths), 3), 255, np.uint8)]
    for row in drawn:
        height = max(map(len, row)) + gap
        padded = [_padded(*each, height, gap) for each in zip(row, widths, strict=True)]
        lines.append(np.concatenate(padded, axis=1))
    canvas = np.concatenate(lines)[:-gap, :-gap]
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    left = 0
    for name, width in zip(names, widths, strict=True):
        place = (left + width / 2) / canvas.shape[1], 1 - 0.5 * head / canvas.shape[0]
        text = figure.text(*place, name, ha="center", va="center", fontsize=10, weight="bold")
        text.set_fontsize(10 / max(1.0, text.get_window_extent().width / width))
        left += width + gap
    return figure


def _padded(cell: NDArray[np.uint8], width: int, height: int, gap: int) -> NDArray[np.uint8]:
    """White around it: in the middle of ``width``, at the top of ``height``, left of ``gap``."""
    left = (width - cell.shape[1]) // 2
    beside = left, width + gap - left - cell.shape[1]
    return np.pad(cell, ((0, height - len(cell)), beside, (0, 0)), constant_values=255)


def _rendered(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, ``(H, W, 3)``."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
