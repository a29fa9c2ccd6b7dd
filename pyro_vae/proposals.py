"""Where the draws of an importance sampler come from: the guide, or the prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pyro_vae.densities import Fields, Score, run_prior
from pyro_vae.pair import Pair
from pyro_vae.structure import Structure
from pyro_vae.weights import refuse_bad_weights, refuse_subsampling

__all__ = ["Guide", "Prior", "Proposal"]

Kernel = Callable[[Tensor, Fields, int, Score], Tensor]  # (x, fields, k, score) -> log weights (k, B), nats


@dataclass(frozen=True)
class Proposal(ABC):
    """A way to draw z for an image, such that the mean of the weights is p(x)."""

    slot: ClassVar[str] = "proposal"
    strata: ClassVar[tuple[float, ...]] = (1.0,)
    warning: ClassVar[str] = ""

    def check(self, structure: Structure) -> None:
        """Raise a ``UserError`` where the weights would not be those of each image's p(x)."""
        refuse_bad_weights(structure)

    @abstractmethod
    def kernel(self, pair: Pair) -> Kernel:
        """The log weights of fresh draws, to be called inside ``pair.active``."""


@dataclass(frozen=True)
class Guide(Proposal):
    """z ~ q(z | x), weights p(x, z) / q(z | x) (Burda et al. 2016)."""

    def kernel(self, pair: Pair) -> Kernel:
        """The pair's own log weights."""
        return lambda x, fields, k, score: pair.run(x, fields, k, score=score).log_weights()


@dataclass(frozen=True)
class Prior(Proposal):
    """z ~ p(z), weights p(x | z): naive Monte Carlo, to show why a guide is needed."""

    warning: ClassVar[str] = (
        "drawn from the prior: few draws, or none, come near an image's posterior, so the number can be far too low without its "
        "error bars telling; use the guide"
    )

    def check(self, structure: Structure) -> None:
        """The guide's density is not used, so a point mass does no harm."""
        refuse_subsampling(structure)

    def kernel(self, pair: Pair) -> Kernel:
        """log p(x | z) at draws of the prior."""

        def log_weights(x: Tensor, fields: Fields, k: int, score: Score) -> Tensor:
            geometry = replace(pair.structure(x, fields).geometry, score=score)
            return run_prior(pair.model, x, fields, k, geometry, pair.layout(x, fields)).log_weights()

        return log_weights
