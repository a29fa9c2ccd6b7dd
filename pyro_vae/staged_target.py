"""The annealing target as tensor programs: the encoder once a tile of images, the rest once a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.densities import Fields
from pyro_vae.staged_weights import split_at_draws
from pyro_vae.staging import NotStageable, TensorProgram, check_tier, trace
from pyro_vae.unconstrained import Point, Unconstrained

_TOLERANCE = 1e-4  # relative to the largest value, as for a training step
GRADIENTS = slice(2, 4)


class TileTarget:
    """The target on one tile of images: what HMC asks of it."""

    def __init__(self, terms: Callable[[Tensor], Sequence[Tensor]], gradients: Callable[[Tensor], Sequence[Tensor]]):
        self._terms, self._gradients = terms, gradients

    def point(self, u: Tensor) -> Point:
        """Both log densities and their gradients at u."""
        return Point(u, *self._terms(u))

    def gradients(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(∇ log q, ∇ log p) alone: cheaper, as a log density's own value is not computed."""
        grad_q, grad_p = self._gradients(u)
        return grad_q, grad_p


class EagerTarget:
    """The Pyro programs themselves, at every u."""

    def __init__(self, space: Unconstrained) -> None:
        self.space = space

    def tile(self, x: Tensor, fields: Fields) -> TileTarget:
        """The target on these images."""

        def terms(u: Tensor) -> Sequence[Tensor]:
            return self.space.differentiate(u, x, fields)

        return TileTarget(terms, lambda u: terms(u)[GRADIENTS])


class StagedTarget(EagerTarget):
    """Traced once for tiles of one size, and split at u."""

    def __init__(self, space: Unconstrained, tier: str, x: Tensor, fields: Fields) -> None:
        """Trace, compile where ``tier`` is ``inductor``, and hold it against the eager programs.

        Raises:
            NotStageable: the reason, in one clause.
        """
        super().__init__(space)
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            self._prepare(tier, x, fields)

    def tile(self, x: Tensor, fields: Fields) -> TileTarget:
        """The prologues run here, once."""
        constant = [*self.program.captured, torch.empty(0, device=x.device), x, *fields.values()]
        position = len(self.program.captured)

        def bind(prologue: fx.GraphModule, body: Callable[..., Any]) -> Callable[[Tensor], Sequence[Tensor]]:
            ready = prologue(*constant)

            def call(u: Tensor) -> Sequence[Tensor]:
                found: Sequence[Tensor] = body(*constant[:position], u, *constant[position + 1 :], *ready)
                return found

            return call

        return TileTarget(*(bind(prologue, body) for prologue, body in self._parts))

    def _prepare(self, tier: str, x: Tensor, fields: Mapping[str, Tensor]) -> None:
        names = list(fields)

        def differentiate(u: Tensor, x: Tensor, *values: Tensor) -> list[Tensor]:
            return list(self.space.differentiate(u, x, dict(zip(names, values, strict=True))))

        arguments = [self.space.draw(x, fields), x, *fields.values()]
        self.program = trace(differentiate, arguments)
        position = len(self.program.captured)
        self._parts: list[tuple[fx.GraphModule, Callable[..., Any]]] = []
        for outputs in (slice(0, 4), GRADIENTS):
            prologue, body = split_at_draws(_with_outputs(self.program.graph, outputs), varying=position)
            run: Callable[..., Any] = body
            if tier == "inductor":
                inputs = [*self.program.captured, *arguments]
                try:
                    run = TensorProgram(body, ()).compile([*inputs, *prologue(*inputs)])
                except Exception as error:
                    reason = (str(error).strip() or repr(error)).splitlines()[0]
                    raise NotStageable(f"inductor failed ({type(error).__name__}: {reason[:160]})") from error
            self._parts.append((prologue, run))
        self._check(x, fields)

    def _check(self, x: Tensor, fields: Fields) -> None:
        """Against the eager programs, on two batches with two u."""
        eager = EagerTarget(self.space)
        for images, named in ((x, fields), (x.flip(0), {name: value.flip(0) for name, value in fields.items()})):
            u = self.space.draw(images, named)
            expected, found = eager.tile(images, named).point(u), self.tile(images, named).point(u)
            pairs = [(getattr(found, n), getattr(expected, n)) for n in ("log_q", "log_p", "grad_q", "grad_p")]
            pairs += zip(self.tile(images, named).gradients(u), (expected.grad_q, expected.grad_p), strict=True)
            for ours, theirs in pairs:
                error = (ours - theirs).abs().nan_to_num().max()
                if not bool(error <= _TOLERANCE * theirs.abs().nan_to_num(posinf=0.0).max().clamp(min=1.0)):
                    raise NotStageable(f"the tensor program differs from the eager one by {float(error):.1e}")


def make_target(space: Unconstrained, compile: str, x: Tensor, fields: Fields) -> tuple[EagerTarget, str]:
    """The target in the tier asked for (``auto``: the replayed graph), and one line that says how it runs."""
    check_tier(compile)
    if compile == "off":
        return EagerTarget(space), "eager Pyro, as asked for"
    try:
        if compile == "inductor":
            return StagedTarget(space, compile, x, fields), "compiled by inductor"
        return StagedTarget(space, "graph", x, fields), "traced graph, replayed"
    except NotStageable as reason:
        return EagerTarget(space), f"eager Pyro ({reason})"


def _with_outputs(module: fx.GraphModule, outputs: slice) -> fx.GraphModule:
    """The same graph with these outputs alone, and without what only the others needed."""
    graph = fx.Graph()
    found = graph.graph_copy(module.graph, {})
    assert isinstance(found, list | tuple)
    graph.output(tuple(found[outputs]))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)
