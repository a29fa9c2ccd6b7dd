"""Path-derivative gradients: sticking the landing (STL) and doubly reparameterised gradients
(DReG).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.objectives.base import Estimate, refuse_no_path, times
from pyro_vae.objectives.multi_sample import IWAE, MultiSampleObjective, share, weighted
from pyro_vae.pair.rescoring import held_draw
from pyro_vae.pair.structure import Geometry, Structure
from pyro_vae.pair.terms import Site, SiteTerms


@dataclass(frozen=True)
class PathDerivative(MultiSampleObjective):
    """A bound whose log q(z | x) has gradients through z only.

    The guide runs twice; the second run scores the draws of the first with its parameters constant.
    """

    draw: ClassVar[Any] = staticmethod(held_draw)

    def check(self, structure: Structure) -> None:
        """Refuse guides without a path, and those whose log q can't be had at a given z with φ held
        fixed.
        """
        super().check(structure)
        name = type(self).__name__
        refuse_no_path(self, structure, "'Trace_ELBO' or 'IWAE(5)'")
        if structure.own_draws_only:
            raise UserError(
                f"{name} scores each draw a second time, but the guide's site "
                f"{structure.own_draws_only[0]!r} can only score its own last draw (such as a "
                "planar flow): use objective='Trace_ELBO' or 'IWAE(5)', or a guide whose "
                "log_prob takes any z, such as MeanField, IAF or an inverted zuko flow"
            )
        if structure.not_held:
            raise UserError(
                f"{name} scores each draw a second time with the guide's parameters constant, "
                f"but {structure.not_held}: use objective='Trace_ELBO' or 'IWAE(5)', or a guide "
                "that depends only on x and its parameters"
            )


@dataclass(frozen=True)
class STL(PathDerivative):
    """The ELBO with sticking-the-landing gradients: ∇_φ E[log p(x, z_φ(ε)) − log q_φ̄(z_φ(ε) | x)].

    φ̄ is φ as a constant, ε the noise. The term that is left out, ∇_φ log q_φ(z | x) at a fixed z,
    has mean 0. So the gradient is unbiased, and its variance is 0 where q(z | x) = p(z | x).

    Args:
        num_particles: draws of z for each image, which are averaged.

    Raises:
        UserError: ``num_particles`` is not a whole number of 1 or more; at the first step, a guide
            that is not reparameterised or can't score a given z.

    Reference:
        Roeder, Wu and Duvenaud 2017, "Sticking the Landing".
    """

    num_particles: int = 1

    def bound(self, log_weights: Tensor) -> Tensor:
        """The mean of ℓ_k."""
        return log_weights.mean(-2)


@dataclass(frozen=True)
class DReG(PathDerivative, IWAE):
    """The IWAE bound with doubly reparameterised gradients: ∇_φ E[Σ_k w̃_k² ∂ log w_k/∂z_k
    ∂z_k/∂φ].

    w̃_k = w_k / Σ_j w_j. The mean gradient is that of IWAE, for any number of stochastic layers.
    Near the posterior its signal-to-noise ratio grows with K, where that of IWAE falls. The model's
    parameters have IWAE's own gradient. With the KL weight β, w̃_k² becomes w̃_k (1 − β + β w̃_k).

    Args:
        num_particles: K, draws of z for each image.

    Raises:
        UserError: as `STL`.

    Reference:
        Tucker et al. 2019, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives".
    """

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """IWAE's estimate: on its way back to z_k the gradient w̃_k ∂ℓ_k/∂z_k is weighed once more,
        at the copies of z_k.
        """
        shares = torch.softmax(weighted(terms, kl_weight).detach(), 0)
        for site in terms.guide.values():
            if site.value.requires_grad:
                weight = times(share(site, terms), kl_weight)
                factor = 1.0 - weight + weight * shares
                site.value.register_hook(_like_value(factor, site, structure.geometry).mul)
        return super().estimate(terms, structure, kl_weight)


def _like_value(weights: Tensor, site: Site, at: Geometry) -> Tensor:
    """``weights``, ``(K, B)``, in a shape that multiplies the values of a guide's site, in
    whichever layout they were drawn.
    """
    num_particles, batch_size = weights.shape
    shape = [1] * site.value.dim()
    image = site.value.dim() - site.fn.event_dim + site.dim
    shape[image] = site.value.shape[image]
    if shape[image] == batch_size and num_particles > 1:  # else images are repeated: K·B rows
        shape[image + at.particle_dim - site.dim] = num_particles
    return weights.reshape(shape)
