"""Proposals of importance sampling: the guide, a defensive mixture, or the prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation.unconstrained import Unconstrained
from pyro_vae.evaluation.weight_sums import split_draws
from pyro_vae.pair.layouts import run_alone
from pyro_vae.pair.log_weights import refuse_bad_weights, refuse_subsampling
from pyro_vae.pair.nodes import Fields, Score
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.terms import SiteTerms
from pyro_vae.validation import check_number

__all__ = ["Defensive", "Guide", "Prior", "Proposal"]

PILOT_DRAWS = 32
"""Draws of the guide for the centre about which it is widened; separate ones, so that the weights
stay unbiased.
"""

Kernel = Callable[
    [Tensor, Fields, int, Score], Tensor
]  # (x, fields, k, score) -> log weights (k, B), nats


@dataclass(frozen=True)
class Proposal(ABC):
    """A way to draw z for an image, such that the mean of the weights is p(x)."""

    slot: ClassVar[str] = "proposal"
    warning: ClassVar[str] = ""
    draws_from_guide: ClassVar[bool] = True  # so that log p(x) misses what the guide never draws

    @property
    def strata(self) -> tuple[float, ...]:
        """The shares of the draws that come from each part, in a chunk's order."""
        return (1.0,)

    def in_words(self) -> str:
        """For the protocol: ``defensive(scale=2.0, weight=0.2)``."""
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return type(self).__name__.lower() + (f"({settings})" if settings else "")

    def check(self, structure: Structure) -> None:
        """Raise a ``UserError`` where the weights would not be those of each image's p(x)."""
        refuse_bad_weights(structure)

    def is_exact(self, structure: Structure) -> bool:
        """Whether no latent is drawn, so that one weight is p(x) itself."""
        return not structure.latents

    @abstractmethod
    def kernel(self, pair: Pair) -> Kernel:
        """The log weights of fresh draws, to be called inside ``pair.active``."""


@dataclass(frozen=True)
class Guide(Proposal):
    """z ~ q(z | x), weights p(x, z) / q(z | x) (Burda et al. 2016).

    A site that the guide asks to enumerate is not drawn: the weight is the sum over its values.
    """

    def is_exact(self, structure: Structure) -> bool:
        """Whether every latent, if there is one, is enumerated."""
        return set(structure.latents) <= structure.enumerated.keys()

    def kernel(self, pair: Pair) -> Kernel:
        """The pair's own log weights."""
        return lambda x, fields, k, score: pair.run(
            x, fields, k, score=score, every_value=True
        ).log_weights()


@dataclass(frozen=True)
class Defensive(Proposal):
    """A share ``weight`` of the draws from q widened ``scale`` times, weights by the balance
    heuristic: tails stay bounded.

    In the joint unconstrained u of all latents, q_s(u) = s^(−d) q(c + (u − c)/s) with c the mean of
    separate pilot draws (a Gaussian with its standard deviations times s); a deterministic mixture,
    still unbiased (Owen & Zhou 2000).
    """

    scale: float = 2.0
    weight: float = 0.2

    def __post_init__(self) -> None:
        words = "a factor above 1, such as 2", "a share between 0 and 1, such as 0.2"
        check_number("Defensive(scale={!r})", self.scale, words[0], 1.0, ends="()")
        check_number("Defensive(weight={!r})", self.weight, words[1], high=1, ends="()")

    @property
    def strata(self) -> tuple[float, ...]:
        """The guide's own draws, then the widened ones."""
        return (1.0 - self.weight, self.weight)

    def kernel(self, pair: Pair) -> Kernel:
        """log p(x, z) less the log of the mixture's density."""
        spaces: dict[int, Unconstrained] = {}

        def space(x: Tensor, fields: Fields, k: int) -> Unconstrained:
            if k not in spaces:
                spaces[k] = Unconstrained(pair, x, fields, k)
                if around := spaces[k].periodic:
                    raise UserError(
                        "proposal='Defensive' widens each latent on the real line, and site "
                        f"{around[0]!r} of the guide is circular. Its density repeats itself, "
                        "so wide draws would count more than once: use proposal='guide', or "
                        "ais(model, guide, x)"
                    )
            return spaces[k]

        def log_weights(x: Tensor, fields: Fields, k: int, score: Score) -> Tensor:
            at = space(x, fields, k)
            at.geometry = replace(at.geometry, score=score)
            own, widened = split_draws(k, self.strata)
            center = space(x, fields, PILOT_DRAWS).draw(x, fields).mean(0)
            u = at.draw(x, fields)
            u = torch.cat((u[:own], center + self.scale * (u[own:] - center)))
            log_q, log_p = at.terms(u, x, fields)
            narrowed = center + (u - center) / self.scale
            log_wide = at.log_guide(narrowed, x, fields) - at.num_dims * log(self.scale)
            parts = [log_q + log(own / k)] + ([log_wide + log(widened / k)] if widened else [])
            return log_p - torch.logsumexp(torch.stack(parts), 0)

        return log_weights


@dataclass(frozen=True)
class Prior(Proposal):
    """z ~ p(z), weights p(x | z): naive Monte Carlo, to show why a guide is needed."""

    warning: ClassVar[str] = (
        "drawn from the prior: few draws, or none, are near the posterior of an image. The "
        "number can be far too low, and its error bars do not show it. Draw from the guide"
    )
    draws_from_guide: ClassVar[bool] = False

    def check(self, structure: Structure) -> None:
        """The guide's density is not used, so a point mass does no harm."""
        refuse_subsampling(structure)

    def is_exact(self, structure: Structure) -> bool:
        """Discrete sites that the guide does not have are drawn as well."""
        return not (structure.latents or structure.summed)

    def kernel(self, pair: Pair) -> Kernel:
        """log p(x | z) at draws of the prior."""

        def log_weights(x: Tensor, fields: Fields, k: int, score: Score) -> Tensor:
            geometry = replace(pair.structure(x, fields).geometry, score=score)
            on_rows = pair.layout(x, fields) != "plate"
            observed, _ = run_alone(pair.model, x, fields, k, geometry, on_rows=on_rows)
            return SiteTerms(k, len(x), 1.0, observed).log_weights()

        return log_weights
