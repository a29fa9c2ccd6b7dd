"""Ways through the latent space, and where each latent site lies under the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.latents import is_real
from pyro_vae.pair.layouts import draw_alone
from pyro_vae.plots.context import Subject

PRIOR_DRAWS = 2000
"""Draws whose moments are those of a site that depends on other sites."""


def line(start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """(1 − t) a + t b for each t of ``at``, ``(n, D)``."""
    return torch.lerp(start, end, at.to(start).unsqueeze(-1))


def arc(start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """(sin((1 − t) ω) a + sin(t ω) b) / sin ω, ω the angle between a and b, ``(n, D)`` (White 2016,
    equation 1).

    Between vectors of one length, as Gaussian draws in many dimensions nearly are, all lie on that
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
    real: bool  # whether it lies on all of R^D
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
