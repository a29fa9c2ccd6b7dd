"""Multi-sample bounds: functions of K log weights log p(x, z_k) − log q(z_k | x) of each image."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf, log
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.objectives.base import Estimate, Objective, reconstruction, sampled_kl, times
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.terms import Site, SiteTerms, same_scale, scale_words
from pyro_vae.validation import check_number


@dataclass(frozen=True)
class MultiSampleObjective(Objective):
    """Σ over images of E[f(ℓ_1 … ℓ_K)], with ℓ_k = log p(x | z_k) + β [log p(z_k) − log q(z_k | x)]
    and z_k ~ q(z | x).

    At KL weight β = 1 the ℓ_k are the log weights. Gradients are pathwise where a site is
    reparameterised. Elsewhere they are score functions with VIMCO's control variate: f with ℓ_k
    replaced by the mean of the others, which does not depend on z_k. Both are unbiased.

    Reference:
        Mnih and Rezende 2016, "Variational Inference for Monte Carlo Objectives".
    """

    def check(self, structure: Structure) -> None:
        """Refuse point masses, which have no density to weigh a draw by."""
        super().check(structure)
        if structure.point_masses:
            raise UserError(
                f"{type(self).__name__} weights its draws by q(z | x), but the guide's site "
                f"{structure.point_masses[0]!r} is a point mass (Delta), which has no density: "
                "use objective='Trace_ELBO' or 'TraceMeanField_ELBO' (at kl_weight=0 the plain "
                "autoencoder)"
            )

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """f, the bound as a function of the log weights: ``(…, K, B)`` to ``(…, B)``, in nats."""

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """−Σ f over the batch, times the scale of a subsampling plate."""
        log_weights = weighted(terms, kl_weight)
        value = surrogate = self.bound(log_weights).sum()
        scores = [site.score_term for site in terms.guide.values() if site.score_term is not None]
        if scores:
            surrogate = value + (self._learning_signals(log_weights.detach()) * sum(scores)).sum()
        loss = -terms.plate_scale * (
            value.detach() + surrogate - surrogate.detach() if scores else value
        )
        return Estimate(loss, reconstruction(terms), sampled_kl(terms), terms.plate_scale)

    def _learning_signals(self, log_weights: Tensor) -> Tensor:
        """f(ℓ) − f(ℓ with ℓ_k replaced by the mean of the others), ``(K, B)``; f(ℓ) itself at K =
        1.
        """
        num_particles = len(log_weights)
        value = self.bound(log_weights)
        if num_particles == 1:
            return value.unsqueeze(0)
        others = (log_weights.sum(0) - log_weights) / (num_particles - 1)
        replaced = torch.eye(num_particles, dtype=torch.bool, device=log_weights.device).unsqueeze(
            -1
        )
        return value - self.bound(torch.where(replaced, others.unsqueeze(1), log_weights))


def weighted(terms: SiteTerms, kl_weight: Tensor) -> Tensor:
    """ℓ = log p(x | z) + β Σ_s β_s [log p(z_s) − log q(z_s | x)], ``(K, B)``, β_s the scale of a
    latent site in both programs; a ``UserError`` where one carries another scale of its own.
    """
    sites = {**terms.observed, **terms.prior}
    for role, group in (("model", sites), ("guide", terms.guide)):
        for name, site in group.items():
            other = (terms.guide if role == "model" else terms.prior).get(name, site)
            own = name in terms.observed or not same_scale(site.scale, other.scale)
            if own and not same_scale(site.scale, terms.plate_scale):
                raise UserError(
                    f"site {name!r} of the {role} is scaled by {scale_words(site.scale)} where "
                    f"the data plate scales by {terms.plate_scale:g}. A bound of K draws would "
                    "raise its weights to the power of that scale: use kl_weight (fit(…, "
                    "kl_weight=β)), or one plate and one poutine.scale of a latent in both"
                )
    log_likelihood: Any = sum(site.log_prob for site in terms.observed.values())
    prior, guide = (
        sum(times(share(site, terms), site.log_prob) for site in group.values())
        for group in (terms.prior, terms.guide)
    )
    log_weights: Tensor = log_likelihood + kl_weight * (prior - guide)
    return log_weights


def share(site: Site, terms: SiteTerms) -> float | Tensor:
    """β_s: what the site is scaled by besides its plate."""
    return site.scale / terms.plate_scale


def log_mean_exp(values: Tensor) -> Tensor:
    """log (1/K) Σ_k exp v_k over the last dimension but one."""
    return torch.logsumexp(values, -2) - log(values.shape[-2])


@dataclass(frozen=True)
class IWAE(MultiSampleObjective):
    """L_K = E[log (1/K) Σ_k p(x, z_k) / q(z_k | x)], the importance-weighted bound.

    K = ``num_particles``; ELBO = L_1 ≤ L_K ≤ L_{K+1} ≤ log p(x). Gradients are Σ_k w̃_k ∇ log w_k
    with the normalised weights w̃; score functions where a site of the guide has no rsample.

    Args:
        num_particles: K, draws of z for each image.

    Raises:
        UserError: ``num_particles`` is not a whole number of 1 or more; at the first step, a point
            mass.

    Reference:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", equations 8 and
        14.
    """

    num_particles: int = 5

    def bound(self, log_weights: Tensor) -> Tensor:
        """log (1/K) Σ_k exp ℓ_k."""
        return log_mean_exp(log_weights)


@dataclass(frozen=True)
class RenyiELBO(MultiSampleObjective):
    """L_α = 1/(1 − α) E[log (1/K) Σ_k (p(x, z_k) / q(z_k | x))^(1 − α)], Rényi's bound.

    α = 0 is `IWAE`, and α = 1 is exactly the ELBO; at α < 0 it may exceed log p(x). Pyro's class of
    that name sums the images before it takes the logarithm, and agrees for one image only.

    Args:
        alpha: α, a finite number; 0 is IWAE, 1 the ELBO.
        num_particles: K, draws of z for each image.

    Raises:
        UserError: a number out of its range; at the first step, a point mass.

    Reference:
        Li and Turner 2016, "Rényi Divergence Variational Inference" (their Monte Carlo estimate).
    """

    alpha: float = 0.5
    num_particles: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        words = "a finite number, 0 for IWAE and 1 for the ELBO"
        check_number("RenyiELBO(alpha={!r})", self.alpha, words, -inf, ends="()")

    def bound(self, log_weights: Tensor) -> Tensor:
        """1/(1 − α) log (1/K) Σ_k exp (1 − α) ℓ_k, and its limit at α = 1."""
        power = 1.0 - self.alpha
        return log_mean_exp(power * log_weights) / power if power else log_weights.mean(-2)


@dataclass(frozen=True)
class MIWAE(MultiSampleObjective):
    """L_{m,k} = (1/m) Σ_i E[log (1/k) Σ_j p(x, z_ij) / q(z_ij | x)]: the average of m bounds
    IWAE(k).

    It takes m · k draws for each image. MIWAE(1, k) is IWAE(k), MIWAE(m, 1) the ELBO of m
    particles.

    Args:
        m: the number of bounds.
        k: draws of z in each.

    Raises:
        UserError: ``m`` or ``k`` is not a whole number of 1 or more; at the first step, a point
            mass.

    Reference:
        Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better".
    """

    counts: ClassVar[tuple[str, ...]] = ("m", "k")

    m: int = 8
    k: int = 8

    @property
    def num_particles(self) -> int:
        """m · k."""
        return self.m * self.k

    def bound(self, log_weights: Tensor) -> Tensor:
        """The mean of m bounds of k draws each."""
        return log_mean_exp(log_weights.unflatten(-2, (self.m, self.k))).mean(-2)


@dataclass(frozen=True)
class CIWAE(MultiSampleObjective):
    """L_β = β ELBO + (1 − β) L_K: a mixture of the ELBO and of the IWAE bound.

    Both come from the same K = ``num_particles`` draws. β = 1 is the ELBO of K particles, β = 0 is
    `IWAE`. This β mixes two bounds; it is not the KL weight.

    Args:
        beta: β, the share of the ELBO, from 0 to 1.
        num_particles: K, draws of z for each image.

    Raises:
        UserError: a number out of its range; at the first step, a point mass.

    Reference:
        Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better".
    """

    beta: float = 0.5
    num_particles: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        words = "a share from 0 (IWAE) to 1 (the ELBO)"
        check_number("CIWAE(beta={!r})", self.beta, words, high=1, ends="[]")

    def bound(self, log_weights: Tensor) -> Tensor:
        """β mean ℓ + (1 − β) log-mean-exp ℓ."""
        return self.beta * log_weights.mean(-2) + (1.0 - self.beta) * log_mean_exp(log_weights)
