"""The ELBO with a sampled KL and with a closed KL: Pyro's two estimators, and free bits."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro import infer
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.objectives.base import (
    Estimate,
    Objective,
    reconstruction,
    refuse_no_path,
    sampled_kl,
    scaled_sum,
)
from pyro_vae.pair.kl import closed_kl, refuse_lone_scale
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.terms import Site, SiteTerms, scale_words
from pyro_vae.validation import check_number


def _score_surrogate(terms: SiteTerms, kl_weight: Tensor) -> Any:
    """Σ log r · log q over the draws that are not reparameterised: its gradient is the
    score-function estimator.

    ``log r`` is each image's own log weight, as in Pyro's Trace_ELBO: a term in a plate of another
    name than the draw's is summed over the images there, as Pyro can't know that the two plates are
    one.
    """
    scores = [site for site in terms.guide.values() if site.score_term is not None]
    return sum((_log_r(terms, kl_weight, site.plate) * site.score_term).sum() for site in scores)


def _log_r(terms: SiteTerms, kl_weight: Tensor, plate: str) -> Any:
    """Σ over sites of scale · log density, ``(K, B)``, added in Pyro's order for its very bits."""

    def term(site: Site) -> Tensor:
        scaled = site.log_prob.detach() * site.scale
        return scaled if site.plate == plate else scaled.sum(-1, keepdim=True)

    log_r: Any = 0.0
    for name in terms.model_order:
        if name in terms.observed:
            log_r = log_r + term(terms.observed[name])
        else:
            log_r = log_r + kl_weight * (term(terms.prior[name]) - term(terms.guide[name]))
    return log_r


@dataclass(frozen=True)
class Trace_ELBO(Objective):
    """ELBO = E_q[log p(x, z) − log q(z | x)], with the KL sampled (AEVB, equation 2).

    Pyro's estimator of that name: pathwise gradients where a site is reparameterised,
    score-function gradients elsewhere. ``num_particles`` draws for each image are averaged, all in
    one run.

    Args:
        num_particles: draws of z for each image.

    Raises:
        UserError: ``num_particles`` is not a whole number of 1 or more.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), equations 2 and 6.
    """

    stock: ClassVar[type[ELBO] | None] = infer.Trace_ELBO
    enumerates: ClassVar[bool] = True

    num_particles: int = 1

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """−ELBO with the KL weighted; equal to Pyro's to the last bit at weight 1 and one
        particle.
        """
        terms = terms.expected()
        model = terms.observed | terms.prior
        sums = {
            name: scaled_sum(model[name].log_prob, model[name].scale) for name in terms.model_order
        }
        bound = [each if n in terms.observed else kl_weight * each for n, each in sums.items()]
        bound += [-kl_weight * scaled_sum(s.log_prob, s.scale) for s in terms.guide.values()]
        # the ELBO, whose sites are added in float64, as Pyro adds Python's floats
        value: Any = sum(term.detach().double() for term in bound)
        surrogate = (sum(bound) + _score_surrogate(terms, kl_weight)) / terms.num_particles
        loss = -(
            (value / terms.num_particles).to(surrogate.dtype) + (surrogate - surrogate.detach())
        )
        return Estimate(loss, reconstruction(terms), sampled_kl(terms), terms.plate_scale)


@dataclass(frozen=True)
class _ByKL(Objective):
    """E_q[log p(x | z)] less what each latent site's KL costs, closed or sampled by the rule of
    `TraceMeanField_ELBO`.
    """

    enumerates: ClassVar[bool] = True

    def check(self, structure: Structure) -> None:
        """Refuse draws that are not reparameterised: this estimator has pathwise gradients
        alone.
        """
        super().check(structure)
        refuse_no_path(self, structure, "'Trace_ELBO'")

    def layout(self, structure: Structure, layout: str) -> str:
        """Closed forms need both distributions on the same rows."""
        return "repeat" if layout == "rows" and structure.analytic else layout

    @abstractmethod
    def costs(self, name: str, terms: SiteTerms, closed: Tensor | None) -> list[Tensor]:
        """What a latent site takes from the bound at KL weight 1, term by term; ``closed`` is its
        KL, ``(K, B)``.
        """

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """−bound, its sites in Pyro's order; ``kl`` is the KL itself, whatever it costs."""
        terms = terms.expected()
        bound: Any = 0.0
        total_kl: Any = 0.0
        for name in terms.model_order:
            if name in terms.observed:
                bound = bound + scaled_sum(
                    terms.observed[name].log_prob, terms.observed[name].scale
                )
                continue
            prior, guide = terms.prior[name], terms.guide[name]
            closed = closed_kl(name, terms, structure) if name in structure.analytic else None
            for cost in self.costs(name, terms, closed):
                bound = bound - kl_weight * cost
            kl = guide.log_prob.sum() - prior.log_prob.sum() if closed is None else closed.sum()
            total_kl = total_kl + kl.detach()
        kl_part = torch.as_tensor(total_kl, device=bound.device) / terms.num_particles
        return Estimate(
            -bound / terms.num_particles, reconstruction(terms), kl_part, terms.plate_scale
        )


@dataclass(frozen=True)
class TraceMeanField_ELBO(_ByKL):
    """ELBO = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)), with the KL in closed form (AEVB, equation
    3).

    For each site the KL is closed if a form is registered, and if every latent before the site in
    the model is also before it in the guide; otherwise it is sampled. (Pyro's class uses the closed
    form in either case, and is wrong in the second.) Where Pyro's is right, the two agree to the
    last bit.

    Args:
        num_particles: draws of z for each image.

    Raises:
        UserError: ``num_particles`` is not a whole number of 1 or more; at the first step, a draw
            that is not reparameterised.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), equations 3 and 7.
    """

    stock: ClassVar[type[ELBO] | None] = infer.TraceMeanField_ELBO

    num_particles: int = 1

    def costs(self, name: str, terms: SiteTerms, closed: Tensor | None) -> list[Tensor]:
        """The KL, or the two densities one after the other, as Pyro adds them."""
        prior, guide = terms.prior[name], terms.guide[name]
        if closed is not None:
            return [scaled_sum(closed, guide.scale)]
        return [-scaled_sum(prior.log_prob, prior.scale), scaled_sum(guide.log_prob, guide.scale)]


@dataclass(frozen=True)
class FreeBits(_ByKL):
    """E_q[log p(x | z)] − β Σ_s max(λ, KL_s), λ = ``free_bits`` nats for each latent site s.

    While the KL of a site, averaged over the minibatch and the particles, is below λ, it costs λ
    and has no gradient. A group of latents is here a *site*, not a dimension: the KL of a site
    exists for every prior and guide, flows and full covariances too. KL_s is closed or sampled as
    in `TraceMeanField_ELBO`, and so is the loss at λ = 0.

    Args:
        free_bits: λ, nats for each latent site, 0 or more.
        num_particles: draws of z for each image.

    Raises:
        UserError: a number out of its range; at the first step, a draw that is not reparameterised.

    Reference:
        Kingma et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow",
        appendix C.8.
    """

    free_bits: float = 0.5
    num_particles: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        words = "nats for a latent site, 0 or more"
        check_number("FreeBits(free_bits={!r})", self.free_bits, words)

    def costs(self, name: str, terms: SiteTerms, closed: Tensor | None) -> list[Tensor]:
        """The KL of the batch, or λ an image and particle where that is more."""
        prior, guide = terms.prior[name], terms.guide[name]
        refuse_lone_scale(name, prior, guide)
        if isinstance(guide.scale, Tensor) and guide.scale.dim():
            raise UserError(
                f"site {name!r} is scaled by {scale_words(guide.scale)}, but FreeBits uses the "
                "KL of a whole batch: use objective='Trace_ELBO'"
            )
        kl = guide.log_prob - prior.log_prob if closed is None else closed
        count = terms.num_particles * terms.batch_size
        return [guide.scale * torch.clamp(kl.sum() / count, min=self.free_bits) * count]
