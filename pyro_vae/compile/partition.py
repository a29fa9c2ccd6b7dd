"""Partition of a traced function: one program for what all draws share, one for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.compile.graph_passes import quicken
from pyro_vae.compile.trace import TensorProgram


class SplitProgram:
    """A traced function of ``(varying?, *tile)``, for arguments of one shape; replayed, or its body
    compiled.

    Args:
        arguments: those that it was traced at.
        varies: whether the first argument changes from call to call, as a draw does; the others are
            a tile's.
        outputs: those that are wanted.
    """

    def __init__(
        self,
        program: TensorProgram,
        arguments: Sequence[Tensor],
        tier: str,
        *,
        varies: bool = False,
        outputs: slice = slice(None),
    ) -> None:
        self._captured, self._varies = program.captured, varies
        self.prologue, self.body = split_at_draws(
            program.graph, len(program.captured) if varies else None, outputs
        )
        self._run: Callable[..., Any] = self.body
        if tier == "inductor":
            quicken(self.body)
            inputs = [*self._captured, *arguments]
            self._run = TensorProgram(self.body, ()).compile([*inputs, *self.prologue(*inputs)])

    def tile(self, *arguments: Tensor) -> Callable[..., Sequence[Tensor]]:
        """The function at these images; the prologue runs at the first call, once."""
        ready: list[Sequence[Tensor]] = []

        def call(*varying: Tensor) -> Sequence[Tensor]:
            inputs = [*self._captured, *varying, *arguments]
            if not ready:
                ready.append(self.prologue(*inputs))
            results: Sequence[Tensor] = self._run(*inputs, *ready[0])
            return results

        return call

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """The whole function, as it was before it was split."""
        count = int(self._varies)
        return self.tile(*arguments[count:])(*arguments[:count])


def split_at_draws(
    module: fx.GraphModule, varying: int | None = None, outputs: slice = slice(None)
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two graphs of the same inputs: what no draw feeds, and the rest, which takes the first one's
    outputs as well.

    The input number ``varying``, where it is given, counts as a draw; of the graph's outputs only
    these are kept.

    Views and creations stay with the rest: they cost nothing there, and an expanded view must not
    become memory.
    """
    nodes = list(module.graph.nodes)
    fed = _fed_by_draws(nodes, None if varying is None else nodes[varying])
    rest = set(fed)
    for node in reversed(nodes):  # a free node that the rest uses is there as well
        if node not in rest and _is_free(node) and any(user in rest for user in node.users):
            rest.add(node)
    handed = [
        n
        for n in nodes
        if n not in rest and n.op == "call_function" and any(user in rest for user in n.users)
    ]
    prologue, body = fx.Graph(), fx.Graph()
    first: dict[fx.Node, fx.Node] = {}
    second: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op == "placeholder":
            first[node], second[node] = prologue.node_copy(node), body.node_copy(node)
    for node in handed:
        second[node] = body.placeholder(f"ready_{node.name}")
    for node in nodes:
        if node.op == "call_function" and node not in fed:
            first[node] = prologue.node_copy(node, first.__getitem__)
        if node.op == "call_function" and node in rest:
            second[node] = body.node_copy(node, second.__getitem__)
    prologue.output(tuple(first[node] for node in handed))
    results: Any = nodes[-1].args[0]
    body.output(fx.map_arg(tuple(results)[outputs], second.__getitem__))
    body.eliminate_dead_code()
    prologue.eliminate_dead_code()
    return fx.GraphModule(module, prologue), fx.GraphModule(module, body)


def _fed_by_draws(nodes: Sequence[fx.Node], varying: fx.Node | None) -> set[fx.Node]:
    """Random calls, an input that counts as one, all that follows from them, and what any of these
    writes to.

    A tensor that a draw is written into (``h += noise``) is made new for each tile of draws:
    handed over, it would keep what the last one has written.
    """
    fed: set[fx.Node] = set() if varying is None else {varying}
    before = -1
    while len(fed) > before:
        before = len(fed)
        for node in nodes:
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if (
                random
                or node.op == "output"
                or any(source in fed for source in node.all_input_nodes)
            ):
                fed |= {node, *_written(node)}
    return fed


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors whose memory a call changes, whatever view of it it is given; inputs are the
    caller's.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    named = {
        argument.name
        for argument in schema.arguments
        if argument.alias_info and argument.alias_info.is_write
    }
    given = {
        **dict(zip((a.name for a in schema.arguments), node.args, strict=False)),
        **node.kwargs,
    }
    places: list[fx.Node] = []
    fx.map_arg([given.get(name) for name in named], places.append)
    for place in places:
        while _aliases(place):
            (place, *_) = place.all_input_nodes
        if place.op != "placeholder":
            yield place


def _aliases(node: fx.Node) -> bool:
    """Whether its result is memory of its first input: a view, what was written in place, or one of
    several views.
    """
    schema = getattr(node.target, "_schema", None)
    return node.target is getitem or (
        schema is not None and any(r.alias_info is not None for r in schema.returns)
    )


def _is_free(node: fx.Node) -> bool:
    """A view, or a creation from nothing."""
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    returns_view = schema is not None and any(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )
    return returns_view or not node.all_input_nodes
