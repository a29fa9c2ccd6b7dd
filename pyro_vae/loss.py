"""What an objective is: a value that, given a model and a guide, becomes a loss module (as Pyro's own ``ELBO.__call__``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae.counts import check_whole
from pyro_vae.densities import Fields, SiteTerms, plain_draw
from pyro_vae.errors import UserError
from pyro_vae.pair import Pair
from pyro_vae.program import Program
from pyro_vae.structure import Structure


@dataclass(frozen=True)
class Estimate:
    """One batch's figures, in nats summed over it: the loss to differentiate, and the single-sample ELBO's two parts."""

    loss: Tensor  # 0-dim, −bound, scaled as Pyro's
    reconstruction: Tensor  # 0-dim, Σ log p(x | z), unscaled, the mean over particles
    kl: Tensor  # 0-dim, Σ log q(z | x) − log p(z), or its closed form, unscaled and at KL weight 1
    plate_scale: float  # what a subsampling plate multiplied the loss by


@dataclass(frozen=True)
class Objective(ABC):
    """An objective and its settings; ``objective(model, guide)`` is the loss module.

    The KL weight β multiplies the latent sites' terms, log p(z) − log q(z | x) or the KL, wherever they stand in a bound.
    """

    slot: ClassVar[str] = "objective"
    counts: ClassVar[tuple[str, ...]] = ("num_particles",)  # the settings that are numbers of draws

    @property
    @abstractmethod
    def num_particles(self) -> int:
        """Draws of z an image; a dataclass's field where it is a setting."""

    def __post_init__(self) -> None:
        for name in self.counts:
            check_whole(f"{type(self).__name__}({name}={{!r}})", getattr(self, name), "draws")

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Loss:
        return Loss(self, Pair.of(model, guide))

    def check(self, structure: Structure) -> None:  # most objectives serve every pair
        """Raise a ``UserError`` where this objective can't serve such a pair."""

    def layout(self, structure: Structure, layout: str) -> str:
        """The layout to use for several particles, given the pair's own choice."""
        return layout

    def draw(self, guide: Program, x: Tensor, fields: Fields) -> Trace:
        """The guide's draws, and the densities that they are scored by."""
        return plain_draw(guide, x, fields)

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
        terms = self.pair.run(x, fields, particles, layout, draw=self.objective.draw)
        return self.objective.estimate(terms, structure, self.kl_weight)


def scaled_sum(log_prob: Tensor, scale: float | Tensor) -> Tensor:
    """Σ scale · log_prob; the product is left out at scale 1, as in Pyro."""
    return (log_prob if isinstance(scale, float) and scale == 1.0 else log_prob * scale).sum()


def reconstruction(terms: SiteTerms) -> Tensor:
    """Σ log p(x | z) over images, mean over particles, without its graph."""
    total: Tensor = sum(site.log_prob.sum() for site in terms.observed.values())  # type: ignore[assignment]
    return total.detach() / terms.num_particles


def sampled_kl(terms: SiteTerms) -> Tensor:
    """Σ log q(z | x) − log p(z) over latents and images, mean over particles, without its graph."""
    none = reconstruction(terms).new_zeros(())
    total = sum((site.log_prob.sum() for site in terms.guide.values()), none) - sum(
        (site.log_prob.sum() for site in terms.prior.values()), none
    )
    return total.detach() / terms.num_particles


def refuse_no_path(objective: Objective, structure: Structure, instead: str) -> None:
    """A ``UserError`` where a draw is not reparameterised and the objective's gradients are pathwise alone."""
    if structure.not_reparameterized:
        site = structure.not_reparameterized[0]
        raise UserError(
            f"{type(objective).__name__} needs reparameterised draws, and site {site!r} of the guide has none (its "
            f"distribution has no rsample): use objective={instead}, with score-function gradients"
        )
