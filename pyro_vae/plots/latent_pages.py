"""Pages of the latent space, and paths through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.generate import decode
from pyro_vae.analysis.latents import is_real, whole_images
from pyro_vae.pair.layouts import draw_alone
from pyro_vae.plots.context import Subject
from pyro_vae.plots.figures import grid_figure, rows_figure, scatter
from pyro_vae.plots.images import DoesNotFit, picture_shape, tile, to_pixels

PRIOR_DRAWS = 2000
"""Draws whose moments are those of a site that depends on other sites."""


def line(start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """(1 − t) a + t b for each t of ``at``, ``(n, D)``."""
    return torch.lerp(start, end, at.to(start).unsqueeze(-1))


def arc(start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """(sin((1 − t) ω) a + sin(t ω) b) / sin ω, ω the angle between a and b, ``(n, D)`` (White 2016,
    equation 1).

    Between vectors of one length, as Gaussian draws in many dimensions nearly are, all are on that
    sphere; it is the line where a and b are parallel, or one is 0.
    """
    t, lengths = at.to(start).unsqueeze(-1), start.norm() * end.norm()
    angle = torch.arccos((start @ end / lengths).clamp(-1, 1))
    if not float(sine := torch.sin(angle)) > 1e-3:  # NaN where a length is 0
        return line(start, end, at)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / sine


@dataclass(frozen=True)
class PriorLaw:
    """The marginal p(z_s) of one latent site."""

    discrete: bool
    real: bool  # whether it is on all of R^D
    mean: Tensor  # event shape
    sd: Tensor


def prior_laws(subject: Subject) -> dict[str, PriorLaw]:
    """By site: exact moments where nothing comes before it, by the law of total variance over draws
    elsewhere.
    """
    times = -(-PRIOR_DRAWS // min(len(subject.x), PRIOR_DRAWS))
    rows = slice(min(len(subject.x), PRIOR_DRAWS))
    given = {**subject.options, "fields": subject.fields(rows)}
    with visit_images(subject.model, subject.guide, subject.x[rows], PRIOR_DRAWS, **given) as (
        pair,
        batches,
    ):
        images, named = next(iter(batches))
        at = pair.structure(images, named).geometry
        nodes = draw_alone(pair.model, images, named, times, at, on_rows=True)
        latents = {name: node for name, node in nodes.items() if not node["is_observed"]}
        return {name: _law(node["fn"], partial(at.rows, node)) for name, node in latents.items()}


def _law(fn: Any, rows: Callable[..., Tensor]) -> PriorLaw:
    discrete = bool(fn.support.is_discrete)
    centers, spread = rows().double(), torch.zeros((), dtype=torch.float64)
    if not discrete:
        try:
            mean, variance = rows(fn.mean).double(), rows(fn.variance).double()
        except NotImplementedError:
            mean = variance = torch.full((), torch.nan)
        if bool(mean.isfinite().all()) and bool(variance.isfinite().all()):
            centers, spread = mean, variance.mean(0).cpu()
    sd = (centers.var(0).cpu() + spread).sqrt()
    return PriorLaw(discrete, is_real(fn), centers.mean(0).cpu(), sd)


MANIFOLD_SIDE = 20  # AEVB, figure 4
TSNE_IMAGES = 2000  # t-SNE of so many points takes seconds
MIN_TSNE_IMAGES = 150  # five times the perplexity; PCA below
PERPLEXITY = 30
PATHS, PATH_STEPS = 5, 11
TRAVERSED, TRAVERSAL_STEPS = 10, 11
ACTIVE = 0.01
"""The variance of a dimension's posterior mean above which it is active (Burda et al. 2016, section
5.2).
"""


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
    title = f"{title}\n{len(points)} test {subject.one}s{data}"
    return scatter(points, subject.labels, title, axes, subject.class_name)


def manifold(subject: Subject) -> Figure:
    """Means of p(x | z) on a grid of even quantiles of N(0, I) (AEVB, figure 4)."""
    shape = subject.event_shape
    picture_shape(shape)
    if subject.means.shape[1] != 2:
        raise DoesNotFit(f"the latent has {subject.means.shape[1]} dimensions: a manifold needs 2")
    if subject.conditional:
        raise DoesNotFit("the model is conditional on y: the page `classes` shows it")
    canvas = tile(
        to_pixels(_decoded(subject, gaussian_grid(MANIFOLD_SIDE)), subject.values), MANIFOLD_SIDE
    )
    figure = grid_figure(
        canvas, "Mean of $p(x|z)$, $z$ at even quantiles of $N(0, I)$", margin=(0.5, 0.4)
    )
    axes = figure.axes[0]
    axes.set_axis_on()
    height, width = canvas.shape[:2]
    at = torch.arange(-3, 4) / 2
    places = torch.special.ndtr(
        at
    ).numpy()  # where each z is between the edges of the grid, from 0 to 1
    names = [f"{z:g}".replace("-", "−") for z in at.tolist()]
    axes.set_xticks(places * width - 0.5, names)
    axes.set_yticks((1 - places) * height - 0.5, names)
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("$z_1$", fontsize=9, labelpad=1)
    axes.set_ylabel("$z_2$", fontsize=9, labelpad=0)
    return figure


def interpolation(subject: Subject) -> Figure:
    """Means of p(x | z) from the code of one test image to that of another: on a line, and on an
    arc.
    """
    picture_shape(subject.event_shape)
    number = min(PATHS, len(subject.x) // 2)
    if not number:
        raise DoesNotFit("two test images are needed, and there is one")
    laws = _continuous(subject)
    ways = {"line": line, "arc": arc} if all(law.real for law in laws.values()) else {"line": line}
    weights = torch.linspace(0, 1, PATH_STEPS)
    rows = []
    for i in range(number):
        start, end = subject.means[2 * i], subject.means[2 * i + 1]
        for name, way in ways.items():
            decoded = _decoded(
                subject, way(start, end, weights), _repeated_label(subject, 2 * i, PATH_STEPS)
            )
            rows.append(
                (name, torch.cat((subject.x[2 * i][None], decoded, subject.x[2 * i + 1][None])))
            )
    title = "Means of $p(x|z)$ from the code (mean of $q(z|x)$) of one test image to that of another, shown at the ends"
    if len(ways) > 1:
        title += "\non a straight line, and on an arc (spherical interpolation)"
    if subject.conditional:
        title += "\n$y$ is the left image's"
    return rows_figure(rows, subject.values, title, block=len(ways))


def traversals(subject: Subject) -> Figure:
    """Means of p(x | z) around a test image's code: a row for each dimension of z, moved through
    its prior's quantiles.
    """
    picture_shape(subject.event_shape)
    laws = _continuous(subject)
    center, variances = subject.means[0], subject.means.var(0) if len(subject.means) > 1 else None
    if variances is None:
        raise DoesNotFit("two test images are needed, and there is one")
    mean, sd = (
        torch.cat([getattr(law, name).flatten() for law in laws.values()])
        for name in ("mean", "sd")
    )
    quantiles = torch.special.ndtri(
        (torch.arange(TRAVERSAL_STEPS, dtype=torch.float64) + 0.5) / TRAVERSAL_STEPS
    )
    names = _dimension_names(subject)
    rows = []
    for d in variances.sort(descending=True, stable=True).indices[:TRAVERSED].tolist():
        z = center.repeat(TRAVERSAL_STEPS, 1)
        z[:, d] = mean[d] + sd[d] * quantiles.to(z)
        decoded = _decoded(subject, z, _repeated_label(subject, 0, TRAVERSAL_STEPS))
        rows.append((f"{names[d]}: {float(variances[d]):.2f}", decoded))
    count, ends = int((variances > ACTIVE).sum()), f"{float(quantiles[-1]):.2f}"
    title = f"Means of $p(x|z)$ at the first test image's code, one dimension a row moved over ±{ends} sd of its prior\n"
    title += f"at even Gaussian quantiles; left: the variance of its posterior mean ({count} of {len(variances)} above {ACTIVE})"
    return rows_figure(rows, subject.values, title)


def gaussian_grid(side: int) -> Tensor:
    """Φ⁻¹ of the centres of ``side`` × ``side`` cells of the unit square, ``(side², 2)``, row by
    row; z₂ rises upwards.
    """
    quantiles = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack((z1.flatten(), z2.flatten()), dim=1)


def _decoded(subject: Subject, z: Tensor, fields: dict[str, Any] | None = None) -> Tensor:
    """The mean images at ``z``, ``(n, D)``."""
    given = {**subject.options, **(fields or {})}
    sites = decode(subject.model, subject.split(z), subject.x[:1], guide=subject.guide, **given)
    return whole_images(sites, subject.event_shape)


def _repeated_label(subject: Subject, row: int, times: int) -> dict[str, Any]:
    return {
        name: value.expand(times, *value.shape[1:])
        for name, value in subject.fields(slice(row, row + 1)).items()
    }


def _continuous(subject: Subject) -> dict[str, PriorLaw]:
    laws = prior_laws(subject)
    for name, law in laws.items():
        if law.discrete:
            raise DoesNotFit(
                f"latent site {name!r} is discrete, so there is no path between two of its values"
            )
    return laws


def _dimension_names(subject: Subject) -> list[str]:
    """One for each column of ``subject.means``: ``z₁`` or, where there are several sites,
    ``site₁``.
    """
    return [
        f"${name if name.isalpha() and len(name) == 1 else chr(92) + 'mathrm{' + name.replace('_', ' ') + '}'}_{{{d + 1}}}$"
        for name, value in subject.sites.items()
        for d in range(value[0].numel())
    ]


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
    plane = TSNE(
        2, perplexity=PERPLEXITY, init="pca", learning_rate="auto", random_state=seed
    ).fit_transform(few)
    return torch.from_numpy(plane), f"t-SNE (perplexity {PERPLEXITY})", ("t-SNE 1", "t-SNE 2")
