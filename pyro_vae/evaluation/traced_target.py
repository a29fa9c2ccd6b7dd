"""The annealing target as tensor programs: the encoder once a tile of images, the rest once a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.compile.partition import SplitProgram
from pyro_vae.compile.trace import NotStageable, agree, check_tier, trace
from pyro_vae.data.loaders import Batch
from pyro_vae.evaluation.unconstrained import Point, Unconstrained
from pyro_vae.pair.nodes import Fields

GRADIENTS = slice(2, 4)


class TileTarget:
    """The target on one tile of images: what HMC asks of it."""

    def __init__(
        self,
        terms: Callable[[Tensor], Sequence[Tensor]],
        gradients: Callable[[Tensor], Sequence[Tensor]],
    ):
        self._terms, self._gradients = terms, gradients

    def point(self, u: Tensor) -> Point:
        """Both log densities and their gradients at u."""
        return Point(u, *self._terms(u))

    def gradients(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(∇ log q, ∇ log p) alone: cheaper, as a log density's own value is not computed."""
        grad_q, grad_p = self._gradients(u)
        return grad_q, grad_p


class Target:
    """The Pyro programs themselves, at every u; or tensor programs of the terms, and of the
    gradients alone.
    """

    def __init__(self, space: Unconstrained) -> None:
        self.space, self.parts = space, list[SplitProgram]()

    def tile(self, x: Tensor, fields: Fields) -> TileTarget:
        """The target on these images."""
        if self.parts:
            return TileTarget(*(part.tile(x, *fields.values()) for part in self.parts))

        def terms(u: Tensor) -> Sequence[Tensor]:
            return self.space.differentiate(u, x, fields)

        return TileTarget(terms, lambda u: terms(u)[GRADIENTS])


class TracedTarget(Target):
    """Traced once for tiles of one size, and split at u; held against the programs on these and
    other rows.

    Raises:
        NotStageable: the reason, in one clause.
    """

    def __init__(self, space: Unconstrained, tier: str, first: Batch, others: Batch) -> None:
        super().__init__(space)
        names = list(first[1])

        def differentiate(u: Tensor, x: Tensor, *values: Tensor) -> list[Tensor]:
            return list(space.differentiate(u, x, dict(zip(names, values, strict=True))))

        with torch.random.fork_rng([first[0].device] if first[0].device.type == "cuda" else []):
            batches = [
                [space.draw(x, fields), x, *(fields[name] for name in names)]
                for x, fields in (first, others)
            ]
            program = trace(differentiate, batches[0])
            for outputs in (slice(0, 4), GRADIENTS):
                part = SplitProgram(program, batches[0], tier, varies=True, outputs=outputs)
                agree(
                    part,
                    lambda *a, outputs=outputs: differentiate(*a)[outputs],
                    batches,
                    [1] * 3,
                    floor=1.0,
                )
                self.parts.append(part)


def make_target(
    space: Unconstrained, compile: str, first: Batch, others: Batch
) -> tuple[Target, str]:
    """The target in the tier asked for (``auto``: the replayed graph), and one line that says how
    it runs.
    """
    check_tier(compile)
    if compile == "off":
        return Target(space), "eager Pyro, as asked for"
    try:
        staged = TracedTarget(
            space, "inductor" if compile == "inductor" else "graph", first, others
        )
        return staged, "compiled by inductor" if compile == "inductor" else "traced graph, replayed"
    except NotStageable as reason:
        return Target(space), f"eager Pyro ({reason})"
