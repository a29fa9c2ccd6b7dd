"""Objectives: values that, given a model and a guide, become a loss module (as Pyro's own ``ELBO.__call__``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.densities import Fields, Site, SiteTerms, masked, per_image
from pyro_vae.errors import UserError
from pyro_vae.pair import Pair
from pyro_vae.structure import Structure

__all__ = ["Objective", "TraceMeanField_ELBO", "Trace_ELBO"]


@dataclass(frozen=True)
class Estimate:
    """One batch's figures, in nats summed over it: the loss to differentiate, and the single-sample ELBO's two parts."""

    loss: Tensor  # 0-dim, −bound, scaled as Pyro's
    reconstruction: Tensor  # 0-dim, Σ log p(x | z), unscaled
    kl: Tensor  # 0-dim, Σ log q(z | x) − log p(z), or its closed form, unscaled and at KL weight 1
    plate_scale: float  # what a subsampling plate multiplied the loss by


@dataclass(frozen=True)
class Objective(ABC):
    """An objective and its settings; ``objective(model, guide)`` is the loss module."""

    slot: ClassVar[str] = "objective"

    num_particles: int = 1

    def __post_init__(self) -> None:
        if type(self.num_particles) is not int or self.num_particles < 1:
            raise UserError(
                f"{type(self).__name__}(num_particles={self.num_particles!r}): expected a whole number of draws, 1 or more"
            )

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Loss:
        return Loss(self, Pair.of(model, guide))

    def check(self, structure: Structure) -> None:  # most objectives serve every pair
        """Raise a ``UserError`` where this objective can't serve such a pair."""

    def layout(self, structure: Structure, layout: str) -> str:
        """The layout to use for several particles, given the pair's own choice."""
        return layout

    @abstractmethod
    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """The loss and its parts from the terms of one batch."""


class Loss(nn.Module):
    """−bound of one batch, in nats summed over it. ``kl_weight`` is a 0-dim buffer: change it in place."""

    kl_weight: Tensor

    def __init__(self, objective: Objective, pair: Pair) -> None:
        super().__init__()
        self.objective, self.pair = objective, pair
        for program in (pair.model, pair.guide):
            if program.owner is not None:
                setattr(self, program.role, program.owner)
        self.register_buffer("kl_weight", torch.ones(()), persistent=False)

    def forward(self, x: Tensor, **fields: Tensor) -> Tensor:
        """The loss of a batch ``x``, ``(B, *event_shape)``."""
        return self.measure(x, fields).loss

    def measure(self, x: Tensor, fields: Fields) -> Estimate:
        """The loss with the reconstruction and KL of the same draws, in the modules' present mode."""
        with self.pair.active():
            return self.step(x, fields)

    def step(self, x: Tensor, fields: Fields) -> Estimate:
        """``measure`` for a caller that has made the pair active: what a training loop runs."""
        structure = self.pair.structure(x, fields)
        self.objective.check(structure)
        particles = self.objective.num_particles
        layout = self.objective.layout(structure, self.pair.layout(x, fields)) if particles > 1 else None
        terms = self.pair.run(x, fields, particles, layout)
        return self.objective.estimate(terms, structure, self.kl_weight)


def scaled_sum(log_prob: Tensor, scale: float) -> Tensor:
    """Σ scale · log_prob; the product is left out at scale 1, as in Pyro."""
    return (log_prob if scale == 1.0 else log_prob * scale).sum()


def _sampled_kl(terms: SiteTerms) -> Tensor:
    """Σ log q(z | x) − log p(z) over latents and images, mean over particles."""
    total = sum(site.log_prob.sum() for site in terms.guide.values()) - sum(
        site.log_prob.sum() for site in terms.prior.values()
    )
    return torch.as_tensor(total).detach() / terms.num_particles


def _reconstruction(terms: SiteTerms) -> Tensor:
    total: Tensor = sum(site.log_prob.sum() for site in terms.observed.values())  # type: ignore[assignment]
    return total.detach() / terms.num_particles


def _score_surrogate(terms: SiteTerms, kl_weight: Tensor) -> Any:
    """Σ log r · log q over the draws that are not reparameterised: its gradient is the score-function estimator.

    ``log r`` is each image's own log weight (Rao-Blackwellised over the data plate), as in Pyro's Trace_ELBO.
    """
    scores = [site for site in terms.guide.values() if site.score_term is not None]
    if not scores:
        return 0.0
    log_r: Any = 0.0
    for name in terms.model_order:  # in Pyro's order of addition, for its very bits
        if name in terms.observed:
            site = terms.observed[name]
            log_r = log_r + site.log_prob.detach() * site.scale
        else:
            prior, guide = terms.prior[name], terms.guide[name]
            log_r = log_r + kl_weight * (prior.log_prob.detach() * prior.scale - guide.log_prob.detach() * guide.scale)
    return sum((log_r * site.score_term).sum() for site in scores)


class Trace_ELBO(Objective):
    """ELBO = E_q[log p(x, z) − log q(z | x)], with the KL sampled (AEVB, equation 2).

    Pyro's estimator of the same name: pathwise gradients where a site is reparameterised, score-function gradients
    elsewhere. ``num_particles`` draws an image are averaged, all in one run.
    """

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """−ELBO with the KL weighted; equal to Pyro's to the last bit at weight 1 and one particle."""
        value: Any = 0.0  # the ELBO; its sites are added in float64, as Pyro adds Python's floats
        surrogate: Any = 0.0  # what is differentiated
        for name in terms.model_order:
            if name in terms.observed:
                term = scaled_sum(terms.observed[name].log_prob, terms.observed[name].scale)
            else:
                term = kl_weight * scaled_sum(terms.prior[name].log_prob, terms.prior[name].scale)
            value, surrogate = value + term.detach().double(), surrogate + term
        for site in terms.guide.values():
            term = kl_weight * scaled_sum(site.log_prob, site.scale)
            value = value - term.detach().double()
            if site.score_term is None:  # elsewhere E[∇ log q] = 0, and Pyro leaves the term out
                surrogate = surrogate - term
        surrogate = (surrogate + _score_surrogate(terms, kl_weight)) / terms.num_particles
        loss = -((value / terms.num_particles).to(surrogate.dtype) + (surrogate - surrogate.detach()))
        return Estimate(loss, _reconstruction(terms), _sampled_kl(terms), terms.plate_scale)


class TraceMeanField_ELBO(Objective):
    """ELBO = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)), with the KL in closed form (AEVB, equation 3).

    By site: closed where every latent before it in the model is before it in the guide too and a form is registered,
    sampled otherwise (Pyro's own takes the closed form in either case, and is wrong in the second).
    """

    def check(self, structure: Structure) -> None:
        """Refuse draws that are not reparameterised: this estimator has pathwise gradients alone."""
        if structure.not_reparameterized:
            raise UserError(
                f"TraceMeanField_ELBO needs reparameterised draws, and site {structure.not_reparameterized[0]!r} of the guide has "
                "none (its distribution has no rsample): use objective='Trace_ELBO', which has score-function gradients"
            )

    def layout(self, structure: Structure, layout: str) -> str:
        """Closed forms need both distributions on the same rows."""
        return "repeat" if layout == "rows" and structure.analytic else layout

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """−ELBO with closed-form KLs; equal to Pyro's to the last bit where Pyro's is right."""
        elbo: Any = 0.0
        total_kl: Any = 0.0
        for name in terms.model_order:
            if name in terms.observed:
                elbo = elbo + scaled_sum(terms.observed[name].log_prob, terms.observed[name].scale)
            elif name in structure.analytic:
                _refuse_lone_scale(name, terms.prior[name], terms.guide[name])
                kl = _closed_kl(terms, terms.prior[name], terms.guide[name], structure)
                elbo = elbo - kl_weight * scaled_sum(kl, terms.guide[name].scale)
                total_kl = total_kl + kl.detach().sum()
            else:
                prior, guide = terms.prior[name], terms.guide[name]
                elbo = elbo + kl_weight * scaled_sum(prior.log_prob, prior.scale)
                elbo = elbo - kl_weight * scaled_sum(guide.log_prob, guide.scale)
                total_kl = total_kl + (guide.log_prob.sum() - prior.log_prob.sum()).detach()
        kl_part = torch.as_tensor(total_kl) / terms.num_particles
        return Estimate(-elbo / terms.num_particles, _reconstruction(terms), kl_part, terms.plate_scale)


def _refuse_lone_scale(name: str, prior: Site, guide: Site) -> None:
    """The closed form carries the guide's scale: one that stands in the model alone would be without effect."""
    if prior.scale != guide.scale:
        raise UserError(
            f"site {name!r} is scaled by {prior.scale:g} in the model and by {guide.scale:g} in the guide, and a closed-form KL "
            "can have one scale alone: use kl_weight (fit(…, kl_weight=β)), or the same poutine.scale or plate size in both"
        )


def _closed_kl(terms: SiteTerms, prior: Site, guide: Site, structure: Structure) -> Tensor:
    kl = masked(kl_divergence(guide.fn, prior.fn), guide.mask)
    at = structure.geometry
    particle_dim = at.particle_dim if terms.num_particles > 1 and kl.dim() >= -at.particle_dim else None
    return per_image(kl, terms, at.guide_dim, particle_dim)
