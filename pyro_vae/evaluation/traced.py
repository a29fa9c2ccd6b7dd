"""Log weights and annealing targets as traced graphs, or by the Pyro programs themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeVar

from torch import Tensor

from pyro_vae.compile.partition import SplitProgram
from pyro_vae.compile.trace import NotStageable, agree, check_tier, trace
from pyro_vae.data.batches import Batch
from pyro_vae.evaluation import fast_log_prob
from pyro_vae.evaluation.precision import FLOAT32, Precision
from pyro_vae.evaluation.proposals import Kernel, Proposal
from pyro_vae.evaluation.unconstrained import Point, Unconstrained
from pyro_vae.memory import keep_freed_memory
from pyro_vae.pair.nodes import Fields, Score, plain_score
from pyro_vae.pair.runtime import Pair
from pyro_vae.rng import kept_randomness
from pyro_vae.training.select_step import CAPTURES, captured

STAGED = {"inductor": "compiled by inductor", "graph": "traced graph, replayed"}
AS_ASKED = "as asked for"

Draw = Callable[[int], Tensor]
"""k -> the log weights of k fresh draws at each image of the tile, (k, B)"""
Weights = Callable[[Tensor, Mapping[str, Tensor]], Draw]
"""Gives fresh log weights for tiles of images that all have one size."""

WORTH_COMPILING = 60.0
"""Estimated seconds of evaluation from which compiling is worth its time."""
_FLOPS_PER_SECOND = {"cpu": 1e11, "cuda": 2e13}
"""CUDA's is reckoned, and was not measured."""
_TOLERANCE = (
    1e-4  # nats, relative to the log weight's size, against the eager program in the same noise
)
_ROUGHLY = 0.02  # the same for reduced precision, whose error is measured and reported besides


class EagerWeights:
    """The Pyro programs themselves, for every tile of draws."""

    def __init__(self, kernel: Kernel, precision: Precision = FLOAT32) -> None:
        self.kernel, self.precision = kernel, precision

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Draw:
        """The kernel's log weights."""

        def draw(k: int) -> Tensor:
            with self.precision.rounding(x.device):
                return self.kernel(x, fields, k, plain_score)

        return draw


class TracedWeights:
    """The kernel as a tensor program for each number of draws; ``others`` is a tile of other rows
    to compare it with.
    """

    def __init__(
        self, kernel: Kernel, tier: str, others: Batch, precision: Precision = FLOAT32
    ) -> None:
        self.kernel, self.tier, self.others, self.precision = kernel, tier, others, precision
        self._programs: dict[int, SplitProgram] = {}

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Draw:
        """The encoder runs at the first draw, and once for each number of draws."""

        @cache
        def tile(k: int) -> Callable[..., Sequence[Tensor]]:
            if k not in self._programs:
                self.prepare(x, fields, k)
            return self._programs[k].tile(x, *fields.values())

        return lambda k: tile(k)()[0]

    def prepare(self, x: Tensor, fields: Mapping[str, Tensor], k: int) -> None:
        """Trace the log weights of ``k`` draws, split and compile them, and compare them with the
        eager kernel.

        Raises:
            NotStageable: the reason, in one clause.
        """
        names = list(fields)
        arguments, others = _flat((x, fields), names), _flat(self.others, names)

        def log_weights(score: Score) -> Callable[..., list[Tensor]]:
            return lambda x, *values: [
                self.kernel(x, dict(zip(names, values, strict=True)), k, score)
            ]

        batches = [arguments, others]
        with kept_randomness(x.device):
            # what a kernel reads from values, it reads now: a trace has none
            self.kernel(x, fields, k, plain_score)
            program = trace(log_weights(fast_log_prob.log_prob), arguments)
            eager, tolerance = log_weights(plain_score), _TOLERANCE
            if self.precision.reduced:
                plain = SplitProgram(program, arguments, "graph")
                agree(plain, eager, batches, tolerance=tolerance, floor=1.0)
                with self.precision.rounding(x.device):
                    program = trace(log_weights(fast_log_prob.log_prob), arguments)
                tolerance = _ROUGHLY
            keep_freed_memory()
            split = SplitProgram(program, arguments, self.tier)
            agree(split, eager, batches, tolerance=tolerance, floor=1.0)
        self._programs[k] = split


Made = TypeVar("Made")


def _best(
    tiers: Sequence[str], make: Callable[[str], Made], eager: Made, note: str
) -> tuple[Made, str]:
    """What is made in the first of these tiers that can be had, else ``eager``; and how it runs."""
    for tier in tiers:
        try:
            return make(tier), f"{STAGED[tier]} ({note})"
        except NotStageable as reason:
            note = str(reason)
    return eager, f"eager Pyro ({note})"


def make_weights(
    pair: Pair,
    proposal: Proposal,
    compile: str,
    num_images: int,
    num_samples: int,
    chunk: int,
    first: Batch,
    others: Batch,
    precision: Precision = FLOAT32,
) -> tuple[Weights, str]:
    """The source in the tier asked for, or in the best one that the work is worth, and one line
    that says why.

    ``first`` and ``others`` are tiles: the first images, and rows drawn from the whole set.
    """
    check_tier(compile)
    kernel, work = proposal.kernel(pair), num_images * num_samples
    flops = 2.0 * sum(t.numel() for t in pair.tensors()) * work
    seconds = flops / _FLOPS_PER_SECOND.get(first[0].device.type, 1e11)
    note, tiers = AS_ASKED, ["inductor", "graph"]
    if compile == "auto":
        note = f"about {seconds:.0f} s of computing"
    if compile == "graph" or (compile == "auto" and seconds < WORTH_COMPILING):
        tiers = ["graph"]
    if compile == "off":
        tiers = []
    else:  # chosen beforehand: a dry run reads values, which a trace can't
        for every in (False, True):
            pair.layout(*first, every_value=every)

    def traced(tier: str) -> Weights:
        weights = TracedWeights(kernel, tier, others, precision)
        weights.prepare(*first, chunk)
        return weights

    return _best(tiers, traced, EagerWeights(kernel, precision), note)


def _flat(batch: tuple[Tensor, Fields], names: Sequence[str]) -> list[Tensor]:
    """x and the fields of these names, as a traced function takes them."""
    return [batch[0], *(batch[1][name] for name in names)]


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
        self.space = space

    def tile(self, x: Tensor, fields: Fields) -> TileTarget:
        """The target on these images."""

        def terms(u: Tensor) -> Sequence[Tensor]:
            return self.space.differentiate(u, x, fields)

        return TileTarget(terms, lambda u: terms(u)[GRADIENTS])


class TracedTarget(Target):
    """Traced once for tiles of one size, and split at u; compared with the programs on these and
    other rows.

    Raises:
        NotStageable: the reason, in one clause.
    """

    def __init__(self, space: Unconstrained, tier: str, first: Batch, others: Batch) -> None:
        super().__init__(space)
        names, self.parts = list(first[1]), list[SplitProgram]()

        def differentiate(u: Tensor, x: Tensor, *values: Tensor) -> list[Tensor]:
            return list(space.differentiate(u, x, dict(zip(names, values, strict=True))))

        with kept_randomness(first[0].device):
            batches = [[space.draw(*each), *_flat(each, names)] for each in (first, others)]
            program = trace(differentiate, batches[0])
            for outputs in (slice(0, 4), GRADIENTS):
                part = SplitProgram(program, batches[0], tier, varies=True, outputs=outputs)

                def eager(*arguments: Tensor, outputs: slice = outputs) -> list[Tensor]:
                    return differentiate(*arguments)[outputs]

                agree(part, eager, batches, [1] * 3, floor=1.0)
                self.parts.append(part)
        self.u = batches[0][0]
        self.replays = not program.host_reads and self.u.device.type in CAPTURES

    def tile(self, x: Tensor, fields: Fields) -> TileTarget:
        """The programs' bodies on these images, each as a CUDA graph where there can be one."""
        calls = [part.tile(x, *fields.values()) for part in self.parts]
        if self.replays:  # whose results the next call writes over
            runs = [captured(call, self.u) for call in calls]
            calls = [lambda u, run=run: [each.clone() for each in run(u)] for run in runs]
        return TileTarget(*calls)


def make_target(
    space: Unconstrained, compile: str, first: Batch, others: Batch
) -> tuple[Target, str]:
    """The target in the tier asked for (``auto``: the replayed graph), and one line that says how
    it runs.
    """
    check_tier(compile)
    tiers = {"auto": ["graph"], "off": []}.get(compile, [compile])
    return _best(
        tiers, lambda tier: TracedTarget(space, tier, first, others), Target(space), AS_ASKED
    )
