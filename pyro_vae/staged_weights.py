"""Log weights tile by tile: what no random draw feeds runs once a tile of images, the rest once a tile of draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae import fast_densities
from pyro_vae.densities import plain_score
from pyro_vae.errors import UserError
from pyro_vae.fast_activations import quicken
from pyro_vae.freed_memory import keep_freed_memory
from pyro_vae.pair import Pair
from pyro_vae.precision import FLOAT32, Precision
from pyro_vae.proposals import Kernel, Proposal
from pyro_vae.staging import NotStageable, TensorProgram, check_tier, missing_compiler, trace

Draw = Callable[[int], Tensor]  # k -> the log weights of k fresh draws at each image of the tile, (k, B)

WORTH_COMPILING = 60.0
"""Estimated seconds of evaluation from which compiling is worth its time."""
_FLOPS_PER_SECOND = 1e11
_TOLERANCE = 1e-4  # nats, relative to the log weight's size, against the eager program in the same noise
_ROUGHLY = 0.02  # the same for reduced precision, whose error is measured and told besides


class WeightSource(ABC):
    """Gives fresh log weights for tiles of images that all have one size."""

    tier: str

    @abstractmethod
    def tile(self, x: Tensor, fields: Mapping[str, Tensor]) -> Draw:
        """A function that draws for these images."""


class EagerWeights(WeightSource):
    """The Pyro programs themselves, for every tile of draws."""

    tier = "off"

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def tile(self, x: Tensor, fields: Mapping[str, Tensor]) -> Draw:
        """The kernel's log weights."""
        return lambda k: self.kernel(x, fields, k, plain_score)


class StagedWeights(WeightSource):
    """The kernel as two tensor programs: a prologue for the tile of images, and what each tile of draws needs."""

    def __init__(self, kernel: Kernel, tier: str, precision: Precision = FLOAT32) -> None:
        self.kernel, self.tier, self.precision = kernel, tier, precision
        self._programs: dict[int, tuple[fx.GraphModule, TensorProgram, Callable[..., Any]]] = {}

    def tile(self, x: Tensor, fields: Mapping[str, Tensor]) -> Draw:
        """The prologue runs at the first draw, and once for each number of draws."""
        arguments, ready = [x, *fields.values()], {}

        def draw(k: int) -> Tensor:
            if k not in self._programs:
                self.prepare(x, fields, k)
            prologue, program, body = self._programs[k]
            if k not in ready:
                ready[k] = prologue(*program.captured, *arguments)
            log_weights: Tensor = body(*program.captured, *arguments, *ready[k])[0]
            return log_weights

        return draw

    def prepare(self, x: Tensor, fields: Mapping[str, Tensor], k: int) -> None:
        """Trace the log weights of ``k`` draws, split and compile them, and hold them against the eager kernel.

        Raises:
            NotStageable: the reason, in one clause.
        """
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            self._prepare(x, fields, k)

    def holds(self, x: Tensor, fields: Mapping[str, Tensor], k: int) -> bool:
        """Whether there is a program for ``k`` draws, and it is still the pair's: a user may have changed a module since."""
        if k not in self._programs:
            return False
        prologue, program, body = self._programs[k]
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            try:
                self._check(prologue, body, program, [x, *fields.values()], fields, k, self._tolerance, num_batches=1)
            except NotStageable:
                return False
        return True

    @property
    def _tolerance(self) -> float:
        return _ROUGHLY if self.precision.reduced else _TOLERANCE

    def _prepare(self, x: Tensor, fields: Mapping[str, Tensor], k: int) -> None:
        names, arguments = list(fields), [x, *fields.values()]

        def log_weights(x: Tensor, *values: Tensor) -> list[Tensor]:
            named = dict(zip(names, values, strict=True))
            return [self.kernel(x, named, k, fast_densities.log_prob)]

        self.kernel(x, fields, k, plain_score)  # what a kernel reads from values, it reads now: a trace has none
        program = trace(log_weights, arguments)
        self._check(*split_at_draws(program.graph), program, arguments, fields, k, _TOLERANCE)
        self.precision.rewrite(program.graph)
        prologue, body_graph = split_at_draws(program.graph)
        keep_freed_memory()
        body: Callable[..., Any] = body_graph
        if self.tier == "inductor":
            quicken(body_graph)
            ready = prologue(*program.captured, *arguments)
            try:
                body = TensorProgram(body_graph, ()).compile([*program.captured, *arguments, *ready])
            except Exception as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                raise NotStageable(f"inductor failed ({type(error).__name__}: {reason[:160]})") from error
        if self.precision.reduced or self.tier == "inductor":
            self._check(prologue, body, program, arguments, fields, k, self._tolerance)
        self._programs[k] = prologue, program, body

    def _check(
        self,
        prologue: fx.GraphModule,
        body: Callable[..., Any],
        program: TensorProgram,
        arguments: Sequence[Tensor],
        fields: Mapping[str, Tensor],
        k: int,
        tolerance: float,
        num_batches: int = 2,
    ) -> None:
        """Against ``log_prob`` itself, on two batches with two noises (one, where the program has passed that before)."""
        for seed, batch in enumerate((list(arguments), [value.flip(0) for value in arguments])[:num_batches]):
            torch.manual_seed(seed)
            expected = self.kernel(batch[0], dict(zip(fields, batch[1:], strict=True)), k, plain_score).double()
            torch.manual_seed(seed)
            found = body(*program.captured, *batch, *prologue(*program.captured, *batch))[0].double()
            error = (found - expected).abs().max()
            if not bool(error <= tolerance * expected.abs().max().clamp(min=1.0)):
                raise NotStageable(f"the tensor program differs from log_prob by {float(error):.1e} nats")


def make_weights(
    pair: Pair,
    proposal: Proposal,
    compile: str,
    num_images: int,
    num_samples: int,
    chunk: int,
    x: Tensor,
    fields: Mapping[str, Tensor],
    precision: Precision = FLOAT32,
) -> tuple[WeightSource, str]:
    """The source in the tier asked for, or in the best one that the work is worth, and one line that says why."""
    check_tier(compile)
    kernel = proposal.kernel(pair)
    if compile == "off":
        if precision.reduced:
            raise UserError(
                f"compile='off' runs the programs as they are, in float32: leave it out for {precision.words}"
            )
        return EagerWeights(kernel), "eager Pyro, as asked for"
    pair.layout(x, fields)  # chosen beforehand: a dry run reads values, which a trace can't
    parameters = sum(t.numel() for t in pair.tensors())
    seconds = 2.0 * parameters * num_images * num_samples / _FLOPS_PER_SECOND
    note = "as asked for" if compile != "auto" else f"about {seconds:.0f} s of work"
    if compile == "inductor" or (compile == "auto" and seconds >= WORTH_COMPILING):
        missing = missing_compiler(x.device)
        try:
            if not missing:
                compiled = _kept(pair, proposal, StagedWeights(kernel, "inductor", precision), x, fields, chunk)
                return compiled, f"compiled by inductor ({note})"
        except NotStageable as reason:
            missing = str(reason)
        note = missing
    try:
        staged = _kept(pair, proposal, StagedWeights(kernel, "graph", precision), x, fields, chunk)
        return staged, f"traced graph, replayed ({note})"
    except NotStageable as reason:
        if precision.reduced:
            raise UserError(
                f"{precision.words} need a program that can be staged ({reason}): use precision='float32'"
            ) from reason
        return EagerWeights(kernel), f"eager Pyro ({reason})"


def _kept(
    pair: Pair, proposal: Proposal, fresh: StagedWeights, x: Tensor, fields: Mapping[str, Tensor], k: int
) -> StagedWeights:
    fresh.prepare(x, fields, k)
    return fresh


def split_at_draws(module: fx.GraphModule, varying: int | None = None) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two graphs of the same inputs: what no draw feeds, and the rest, which takes the first one's outputs as well.

    The input number ``varying``, where it is given, counts as a draw.

    Views and creations stay with the rest: they cost nothing there, and an expanded view must not become memory.
    """
    nodes = list(module.graph.nodes)
    fed = _fed_by_draws(nodes, None if varying is None else nodes[varying])
    rest = set(fed)
    for node in reversed(nodes):  # a free node that the rest uses is there as well
        if node not in rest and _is_free(node) and any(user in rest for user in node.users):
            rest.add(node)
    handed = [n for n in nodes if n not in rest and n.op == "call_function" and any(user in rest for user in n.users)]
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
    body.output(fx.map_arg(nodes[-1].args[0], second.__getitem__))
    prologue.eliminate_dead_code()
    return fx.GraphModule(module, prologue), fx.GraphModule(module, body)


def _fed_by_draws(nodes: Sequence[fx.Node], varying: fx.Node | None) -> set[fx.Node]:
    """Random calls, what they write to, an input that counts as one, and all that follows from them."""
    fed: set[fx.Node] = set() if varying is None else {varying}
    for node in nodes:
        if node.op == "output" or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
        elif node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            fed.add(node)
            fed.update(
                source for source in node.all_input_nodes if not source.all_input_nodes and source.op != "placeholder"
            )
    return fed


def _is_free(node: fx.Node) -> bool:
    """A view, or a creation from nothing."""
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    returns_view = schema is not None and any(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )
    return returns_view or not node.all_input_nodes
