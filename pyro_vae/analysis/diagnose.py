"""Diagnostics of a latent representation: active units, rate and distortion, KL by dimension,
mutual information.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.latents import by_draw, join
from pyro_vae.analysis.mutual_information import Information, mutual_information
from pyro_vae.analysis.representation import ActiveUnits, Diagnostics, DimensionKL, RateDistortion
from pyro_vae.analysis.sbc import SBC, sbc_ranks
from pyro_vae.errors import UserError
from pyro_vae.formatting import standard_error
from pyro_vae.pair.log_weights import refuse_no_latents, refuse_unscorable
from pyro_vae.pair.nodes import Fields, masked, one_by_one
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.terms import Site
from pyro_vae.validation import check_count

__all__ = [
    "SBC",
    "ActiveUnits",
    "Diagnostics",
    "DimensionKL",
    "Information",
    "RateDistortion",
    "diagnose",
    "mutual_information",
    "sbc_ranks",
]


@takes_fields
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_draws: int = 20,
    information_images: int = 1000,
    batch_size: int = 200,
    seed: int = 0,
    device: str | torch.device = "auto",
    **fields: Any,
) -> Diagnostics:
    """Diagnose the latent representation: active units, rate and distortion, KL by dimension,
    mutual information.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``, N ≥ 2.
        num_draws: draws of q(z | x) for each image. A posterior mean without a closed form is
            averaged over them, and the noise that this adds to the variance of a unit is
            subtracted.
        information_images: so many of the first images are used for the mutual information; the
            cost grows with their square.
        batch_size: images in one run.
        seed: seed of the draws.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        `Diagnostics`, which prints itself: all in nats, with standard errors over the images.

    Raises:
        UserError: fewer than two images or draws; the guide has no density; parameters that were
            never fitted.

    Reference:
        Burda et al. 2016 (active units); Alemi et al. 2018, "Fixing a Broken ELBO" (rate and
        distortion); Hoffman and Johnson 2016, "ELBO Surgery" (mutual information).
    """
    parts = _visits(model, guide, x, num_draws, batch_size, seed, device, fields)
    kl = join(part.kl for part in parts)
    distortion = torch.cat([part.distortion for part in parts])
    if len(distortion) < 2:
        raise UserError("x has one image: expected two or more")
    rate = torch.cat([values.sum(1, keepdim=True) for values in kl.values()], dim=1).sum(1)
    return Diagnostics(
        _active(parts, num_draws),
        RateDistortion(
            *(*_mean(rate), *_mean(distortion), *_mean(-rate - distortion)),
            num_images=len(rate),
            num_draws=num_draws,
        ),
        DimensionKL({name: values.mean(0) for name, values in kl.items()}, parts[0].how),
        mutual_information(model, guide, x, information_images, seed=seed, device=device, **fields),
    )


@takes_fields
def active_units(model: Any, guide: Any, x: Any, device: Any, **fields: Any) -> ActiveUnits:
    """The active units alone, by 20 draws of each image's posterior."""
    return _active(_visits(model, guide, x, 20, 200, 0, device, fields), 20)


def _visits(
    model: Any,
    guide: Any,
    x: Any,
    num_draws: int,
    batch_size: int,
    seed: int,
    device: Any,
    fields: Mapping[str, Any],
) -> list[_Visit]:
    check_count("num_draws", num_draws)
    if num_draws < 2:
        raise UserError(
            "num_draws=1: expected 2 or more, because the error of an average is estimated "
            "from its draws"
        )
    parts = []
    with visit_images(model, guide, x, batch_size, device, seed, fields) as (pair, batches):
        for images, named in batches:
            refuse_no_latents(pair.structure(images, named))
            refuse_unscorable(pair, images, named)
            parts.append(_visit(pair, images, named, num_draws))
    return parts


def _active(parts: list[_Visit], num_draws: int) -> ActiveUnits:
    means, noise = (join(getattr(part, name) for part in parts) for name in ("means", "noise"))
    variances = {
        name: (each.var(0) - noise[name].mean(0)).clamp(min=0.0) for name, each in means.items()
    }
    return ActiveUnits(variances, num_draws)


# ------------------------------------------------------------------------------------------
# One batch


@dataclass(frozen=True, eq=False)
class _Visit:
    """Of a batch of images, on the CPU, in float64."""

    kl: dict[str, Tensor]  # by site, (B, D) or (B, 1)
    how: dict[str, str]
    means: dict[str, Tensor]  # by site, (B, D)
    noise: dict[str, Tensor]  # the sampling variance of those means
    distortion: Tensor  # (B,)


def _visit(pair: Pair, x: Tensor, fields: Fields, num_draws: int) -> _Visit:
    terms = pair.run(x, fields, num_draws, layout="repeat")
    structure = pair.structure(x, fields)
    kl, how, means, noise = {}, {}, {}, {}
    for name, guide in terms.guide.items():
        divergence, how[name] = _divergence(name, terms.prior[name], guide, structure)
        kl[name] = _units(divergence, num_draws).mean(0)
        values = _units(guide.rows(_mean_or_draw(guide)), num_draws)
        means[name], noise[name] = values.mean(0), values.var(0) / num_draws
    observed: Any = sum(site.log_prob for site in terms.observed.values())
    return _Visit(
        kl, how, means, noise, -observed.reshape(num_draws, len(x)).double().cpu().mean(0)
    )


def _divergence(name: str, prior: Site, guide: Site, structure: Structure) -> tuple[Tensor, str]:
    """log q − log p or KL(q ‖ p), ``(rows, …)``, by dimension where both distributions factorise,
    and how.
    """
    q, p = one_by_one(guide.fn), one_by_one(prior.fn)
    whole = ", the whole site: its distributions do not factorise" if guide.fn.event_dim else ""
    masked_or_mixed = prior.mixed or any(s.mask not in (None, True) for s in (prior, guide))
    if not (masked_or_mixed or q.event_shape or p.event_shape):
        if name in structure.analytic:
            return guide.rows(kl_divergence(q, p)), "analytic"
        terms = q.log_prob(guide.value) - p.log_prob(guide.value)
        return guide.rows(terms), f"sampled ({structure.sampled[name]})"
    if name in structure.analytic:
        analytic = masked(kl_divergence(guide.fn, prior.fn), guide.mask)
        return guide.rows(analytic), f"analytic{whole}"
    return (
        guide.log_prob - prior.log_prob
    ).flatten(), f"sampled ({structure.sampled[name]}){whole}"


def _mean_or_draw(site: Site) -> Tensor:
    """The mean, which has less noise, or none, where the distribution has one; else the draw."""
    try:
        mean: Tensor = site.fn.mean
    except NotImplementedError:
        return site.value
    return mean if mean.shape == site.value.shape and bool(mean.isfinite().all()) else site.value


def _units(rows: Tensor, num_draws: int) -> Tensor:
    """``(K·B, …)`` as ``(K, B, D)``, on the CPU, in float64."""
    return by_draw(rows.reshape(len(rows), -1), num_draws).double().cpu()


# ------------------------------------------------------------------------------------------


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), standard_error(values)
