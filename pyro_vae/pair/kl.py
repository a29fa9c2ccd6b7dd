"""KL divergences in closed form, also those that neither torch nor Pyro registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from pyro_vae.errors import UserError
from pyro_vae.pair.layouts import on_particles
from pyro_vae.pair.nodes import masked
from pyro_vae.pair.structure import NO_CLOSED_FORM, Structure
from pyro_vae.pair.terms import Site, SiteTerms, same_scale, scale_words, times_shares


@register_kl(MultivariateNormal, Independent)
def _kl_full_independent(q: MultivariateNormal, p: Independent) -> Tensor:
    """KL(N(μ, LLᵀ) ‖ N(m, diag s²))."""
    variance = q.scale_tril.square().sum(-1)
    log_det = 2 * q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _kl(q.loc, variance, log_det, p)


@register_kl(LowRankMultivariateNormal, Independent)
def _kl_low_rank_independent(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    """KL(N(μ, WWᵀ + D) ‖ N(m, diag s²)); the determinant by the matrix determinant lemma."""
    # the unbroadcast tensors, as those that torch expands are read many times
    factor, diagonal = q._unbroadcasted_cov_factor, q._unbroadcasted_cov_diag
    variance = factor.square().sum(-1) + diagonal
    log_det = 2 * q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + diagonal.log().sum(
        -1
    )
    return _kl(q.loc, variance, log_det, p)


def _kl(loc: Tensor, variance: Tensor, log_det: Tensor, p: Independent) -> Tensor:
    """½ Σ_d [(Σ_dd + (μ_d − m_d)²) / s_d² − 1 + log s_d²] − ½ log det Σ."""
    base = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            "there is a closed form only for independent Gaussians on a vector"
        )
    ratio = (variance + (loc - base.loc).square()) / base.scale.square()
    kl: Tensor = 0.5 * ((ratio - 1 + 2 * base.scale.log()).sum(-1) - log_det)
    return kl


@register_kl(dist.Categorical, dist.Categorical)
@register_kl(dist.OneHotCategorical, dist.OneHotCategorical)
def _kl_classes(q: dist.OneHotCategorical, p: dist.OneHotCategorical) -> Tensor:
    """Σ_y q(y) [log q(y) − log p(y)], 0 log 0 being 0: torch indexes with a boolean mask."""
    terms = q.probs * (q.logits - p.logits)
    terms = torch.where(p.probs > 0, terms, torch.inf)
    return torch.where(q.probs > 0, terms, torch.zeros_like(terms)).sum(-1)


def refuse_lone_scale(name: str, prior: Site, guide: Site) -> None:
    """A KL as one term carries the guide's scale: one that is in the model alone would be
    without effect.
    """
    if not same_scale(prior.scale, guide.scale):
        raise UserError(
            f"site {name!r} is scaled by {scale_words(prior.scale)} in the model and by "
            f"{scale_words(guide.scale)} in the guide, but a closed-form KL has one scale: use "
            "kl_weight (fit(…, kl_weight=β)), or the same poutine.scale or plate size in both"
        )


def closed_kl(name: str, terms: SiteTerms, structure: Structure) -> Tensor:
    """KL(q ‖ p) of the latent site ``name``, ``(K, B)``, times the shares of its rows."""
    prior, guide, shares = terms.prior[name], terms.guide[name], terms.shares
    refuse_lone_scale(name, prior, guide)
    kl = masked(kl_divergence(guide.fn, prior.fn), guide.mask)
    at = replace(structure.geometry, enumerated={} if shares is None else structure.enumerated)
    return times_shares(on_particles(kl, terms, guide.dim, guide.particle_dim, at), shares)


def _own_scale(node: Any) -> Tensor:
    """What ``poutine.scale`` multiplies a site by, without the scales of plates that subsample."""
    scale = torch.as_tensor(node["scale"], dtype=torch.float64)
    for frame in node["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            scale = scale * (frame.size / frame.full_size)
    return scale


def analytic_kl(
    model: Mapping[str, Any], guide: Mapping[str, Any], latents: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The rule by site: all latents before it in the model come before it in the guide, and a
    closed form exists.

    Then the model's conditional at this site is a function of values that the guide has drawn
    already, and the inner expectation of the ELBO at this site is the KL divergence itself.
    """
    analytic, sampled, guide_order = [], {}, list(guide)
    for position, name in enumerate(latents):
        before = guide_order[: guide_order.index(name)]
        if late := [other for other in latents[:position] if other not in before]:
            sampled[name] = f"the guide samples {late[0]!r} after it, the model before it"
            continue
        if not torch.allclose(_own_scale(model[name]), _own_scale(guide[name])):
            sampled[name] = "poutine.scale of the model differs from that of the guide"
            continue
        try:
            kl_divergence(guide[name]["fn"], model[name]["fn"])
            analytic.append(name)
        except NotImplementedError:
            sampled[name] = NO_CLOSED_FORM
    return tuple(analytic), sampled
