"""The pictures of a run: a page is one function from a `Subject` to a figure, and one line in `PAGES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data import ImageData
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.image_grid import DoesNotFit, Pixels, image_site, picture_shape, tile, to_pixels, value_range
from pyro_vae.observation import Observed
from pyro_vae.representation import decode, encode, reconstruct, sample

DPI = 200
WIDTH = 1200
"""Device pixels that a grid of images is about wide: 6 inches at 200 dots an inch."""

LARGEST_PIXEL = 14
"""Device pixels to a side of one pixel of an image: a few small images make a small picture."""

COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Ten classes, told apart by colour-blind readers too (Petroff 2021, arXiv:2107.02270)."""

PAIRS, PAIR_COLUMNS = 40, 10
SAMPLES = 100
MANIFOLD_SIDE = 20  # AEVB, figure 4
SCATTER_IMAGES, TSNE_IMAGES = 10_000, 2000  # t-SNE of 2000 points takes seconds
MIN_TSNE_IMAGES = 150  # five times the perplexity; PCA below
PERPLEXITY = 30


@dataclass(eq=False)
class Subject:
    """What there is to show of a run."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor  # (N, *event_shape), the test set as the model observes it
    labels: Tensor | None = None  # (N,)
    name: str = ""  # the data set's
    history: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    device: str | torch.device = "auto"

    @property
    def options(self) -> dict[str, Any]:
        """What every run of the pair is given."""
        return {"seed": self.seed, "device": self.device}

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image."""
        return self.x.shape[1:]

    @cached_property
    def sites(self) -> dict[str, Tensor]:
        """The mean of q(z | x) at each latent site, for the first 10 000 test images."""
        return encode(self.model, self.guide, self.x[:SCATTER_IMAGES], **self.options)

    @cached_property
    def means(self) -> Tensor:
        """All latent sites side by side, ``(n, D)``."""
        return torch.cat([value.reshape(len(value), -1).float() for value in self.sites.values()], dim=1)

    @cached_property
    def values(self) -> tuple[float, float]:
        """What is shown as black and as white."""
        return value_range(self.x)


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
    """Write ``PAGE.png`` for each of ``pages``, or for all that there are of this run; the files, in order.

    Args:
        history_rows: ``{"epoch": …, "train": {…}, "valid": {…} or None}``, each with elbo, reconstruction and kl.

    Raises:
        UserError: an unknown page, or one that was asked for and does not fit the run (`DoesNotFit`).
    """
    chosen = list(PAGES) if pages is None else list(pages)
    for name in chosen:
        if name not in PAGES:
            raise UserError(did_you_mean("page", name, PAGES))
    labels = (
        data.test_labels if data.test_labels is not None and len(data.test_labels) == len(observed.x_test) else None
    )
    subject = Subject(model, guide, observed.x_test, labels, data.name, history_rows, seed, device)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in chosen:
        try:
            figure = PAGES[name](subject)
        except DoesNotFit as reason:
            if pages is not None:
                raise DoesNotFit(f"no page {name!r}: {reason}") from None
            continue
        figure.savefig(folder / f"{name}.png", dpi=DPI)
        written.append(folder / f"{name}.png")
    return written


def samples_picture(
    model: Callable[..., Any], event_shape: tuple[int, ...], n: int, path: Path, seed: int = 0, **options: Any
) -> Path:
    """Write a grid of ``n`` prior samples, the means of p(x | z); ``options`` are those of `sample`."""
    picture_shape(event_shape)
    options.setdefault("like", torch.zeros(1, *event_shape))
    images = image_site(sample(model, n, seed=seed, **options), event_shape)
    figure = _samples_figure(images, value_range(images))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


# ---- the pages


def reconstructions(subject: Subject) -> Figure:
    """Test images as the model observes them, each above the mean of p(x | z) at the mean of q(z | x)."""
    shape, x = subject.event_shape, subject.x[:PAIRS]
    picture_shape(shape)
    decoded = image_site(reconstruct(subject.model, subject.guide, x, **subject.options), shape)
    pairs = np.stack([to_pixels(x, subject.values), to_pixels(decoded, subject.values)], axis=1)
    height = pairs.shape[2]
    gap = max(1, height // 14)
    joined = np.concatenate([pairs[:, 0], np.ones_like(pairs[:, 0, :gap]), pairs[:, 1]], axis=1)
    canvas = tile(joined, PAIR_COLUMNS, gap=gap, row_gap=max(3, height // 4))
    return _grid_figure(canvas, "Upper rows: test images $x$.  Lower rows: mean of $p(x|z)$ at $z$ = mean of $q(z|x)$")


def samples(subject: Subject) -> Figure:
    """Means of p(x | z), z from the prior."""
    shape = subject.event_shape
    picture_shape(shape)
    sites = sample(subject.model, SAMPLES, like=subject.x[:1], guide=subject.guide, **subject.options)
    return _samples_figure(image_site(sites, shape), subject.values)


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
        for part, colour, label in (("train", COLOURS[0], "training"), ("valid", COLOURS[6], "validation")):
            points = [(row["epoch"], row[part][key]) for row in rows if row.get(part)]
            if points:
                marker = "o" if len(points) < 15 else ""
                axes.plot(*zip(*points, strict=True), color=colour, label=label, lw=1, marker=marker, ms=2.5)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        _zoom(axes)
        _quiet(axes)
    panels[0].set_ylabel("nats per image", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def latent(subject: Subject) -> Figure:
    """The means of q(z | x): themselves where z has two dimensions, else their t-SNE or PCA."""
    points = subject.means
    dimensions = points.shape[1]
    if dimensions < 2:
        raise DoesNotFit("the latent has one dimension")
    title, axes = "Means of $q(z|x)$", ("$z_1$", "$z_2$")
    if dimensions > 2:
        points, how, axes = _project(points, subject.seed)
        title = f"{how} of the {dimensions}-D means of $q(z|x)$"
    data = f" of {subject.name}" if subject.name else ""
    return _scatter(points, subject.labels, f"{title}\n{len(points)} test images{data}", axes)


def manifold(subject: Subject) -> Figure:
    """Means of p(x | z) on a grid of z that is even in probability under N(0, I) (AEVB, figure 4)."""
    shape = subject.event_shape
    picture_shape(shape)
    if subject.means.shape[1] != 2:
        raise DoesNotFit(f"the latent has {subject.means.shape[1]} dimensions: a manifold is drawn of 2")
    z = gaussian_grid(MANIFOLD_SIDE)
    widths = [value[0].numel() for value in subject.sites.values()]
    values = {
        name: part.reshape(len(z), *value.shape[1:])
        for (name, value), part in zip(subject.sites.items(), z.split(widths, dim=1), strict=True)
    }
    like = subject.x[:1]
    decoded = image_site(decode(subject.model, values, like, guide=subject.guide, **subject.options), shape)
    canvas = tile(to_pixels(decoded, subject.values), MANIFOLD_SIDE)
    figure = _grid_figure(canvas, "Mean of $p(x|z)$, $z$ at even quantiles of $N(0, I)$", margin=(0.5, 0.4))
    axes = figure.axes[0]
    axes.set_axis_on()
    height, width = canvas.shape[:2]
    at = torch.arange(-3, 4) / 2
    places = torch.special.ndtr(at).numpy()  # where each z stands between the edges of the grid, from 0 to 1
    names = [f"{z:g}".replace("-", "−") for z in at.tolist()]
    axes.set_xticks(places * width - 0.5, names)
    axes.set_yticks((1 - places) * height - 0.5, names)
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("$z_1$", fontsize=9, labelpad=1)
    axes.set_ylabel("$z_2$", fontsize=9, labelpad=0)
    return figure


PAGES: dict[str, Callable[[Subject], Figure]] = {
    "reconstructions": reconstructions,
    "samples": samples,
    "curves": curves,
    "latent": latent,
    "manifold": manifold,
}


# ---- what they are made of


def gaussian_grid(side: int) -> Tensor:
    """Φ⁻¹ of the centres of ``side`` × ``side`` cells of the unit square, ``(side², 2)``, row by row; z₂ rises upwards."""
    quantiles = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack((z1.flatten(), z2.flatten()), dim=1)


def _samples_figure(images: Tensor, values: tuple[float, float]) -> Figure:
    pixels = to_pixels(images, values)
    canvas = tile(pixels, ceil(sqrt(len(pixels))), gap=max(1, pixels.shape[1] // 14))
    return _grid_figure(canvas, "Means of $p(x|z)$ at samples $z$ of the prior")


def _grid_figure(canvas: Pixels, title: str, margin: tuple[float, float] = (0.06, 0.06)) -> Figure:
    """One array of images, each of its pixels a whole number of the picture's; ``margin``: inches at left and below."""
    height, width = canvas.shape[:2]
    scale = min(max(1, round(WIDTH / width)), LARGEST_PIXEL)
    left, bottom, right, top = (round(DPI * inches) for inches in (*margin, 0.06, 0.27))
    size = (left + scale * width + right, bottom + scale * height + top)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    axes = figure.add_axes(
        (left / size[0], bottom / size[1], scale * width / size[0], scale * height / size[1]), frameon=False
    )
    levels = np.rint(canvas * 255).astype(np.uint8).repeat(3 // canvas.shape[2], axis=2)  # no colour map between
    axes.imshow(levels, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    text = figure.text(0.5, 1 - 0.075 * DPI / size[1], title, ha="center", va="top", fontsize=9)
    widest = text.get_window_extent().width / (size[0] - 0.1 * DPI)
    text.set_fontsize(9 / max(1.0, widest))
    return figure


def _scatter(points: Tensor, labels: Tensor | None, title: str, names: tuple[str, str]) -> Figure:
    """A scatter at equal aspect; up to ten classes in colour, each with its number at its median."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    xy = points.numpy()
    size = float(np.clip(4000 / len(xy), 1.5, 12))
    classes = [] if labels is None else labels[: len(xy)].unique().tolist()
    if 1 < len(classes) <= len(COLOURS):
        assert labels is not None
        of = labels[: len(xy)].numpy()
        colours = np.array(COLOURS)[np.searchsorted(classes, of)]
        order = np.random.default_rng(0).permutation(len(xy))  # no class lies on top of the others
        axes.scatter(xy[order, 0], xy[order, 1], s=size, c=colours[order], linewidths=0, alpha=0.8)
        for label, colour in zip(classes, COLOURS, strict=False):
            axes.scatter([], [], s=18, color=colour, linewidths=0, label=str(label))
        _write_classes(axes, xy, of)
        figure.legend(title="class", loc="outside right center", frameon=False, fontsize=8, title_fontsize=8)
    else:
        axes.scatter(xy[:, 0], xy[:, 1], s=size, c=COLOURS[0], linewidths=0, alpha=0.6)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(names[0], fontsize=9)
    axes.set_ylabel(names[1], fontsize=9)
    _quiet(axes)
    if names[0].startswith("t-SNE"):  # its coordinates have no scale
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _write_classes(axes: Axes, xy: NDArray[np.float32], of: NDArray[np.int64]) -> None:
    """Each class's number at its median, unless another's stands there already."""
    least = 0.04 * float(np.ptp(xy, axis=0).max())
    placed: list[NDArray[np.float32]] = []
    for label in np.unique(of):
        place = np.median(xy[of == label], axis=0)
        if all(np.hypot(*(place - other)) > least for other in placed):
            placed.append(place)
            halo = [withStroke(linewidth=2, foreground="white")]
            axes.annotate(str(label), place, ha="center", va="center", fontsize=9, weight="bold", path_effects=halo)


def _project(points: Tensor, seed: int) -> tuple[Tensor, str, tuple[str, str]]:
    """Points ``(n, D)`` in the plane, what was done, and the names of the axes."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(points) < MIN_TSNE_IMAGES:
        pca = PCA(2, random_state=seed)
        plane = pca.fit_transform(points.double().numpy())
        first, second = (f"{share:.0%} of the variance" for share in pca.explained_variance_ratio_)
        return torch.from_numpy(plane), "PCA", (f"PC 1 ({first})", f"PC 2 ({second})")
    few = points[:TSNE_IMAGES].numpy()
    plane = TSNE(2, perplexity=PERPLEXITY, init="pca", learning_rate="auto", random_state=seed).fit_transform(few)
    return torch.from_numpy(plane), f"t-SNE (perplexity {PERPLEXITY})", ("t-SNE 1", "t-SNE 2")


def _zoom(axes: Axes) -> None:
    """Limits that leave out what lies far beyond the rest: the first epochs, before anything is learnt."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    late = np.concatenate([y[ceil(len(y) / 20) if len(y) > 3 else 0 :] for y in lines])
    late = late[np.isfinite(late)]
    if len(late) and float(np.ptp(late)) > 0:
        margin = 0.06 * float(np.ptp(late))
        axes.set_ylim(late.min() - margin, late.max() + margin)


def _quiet(axes: Axes) -> None:
    """Two spines, small figures."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
