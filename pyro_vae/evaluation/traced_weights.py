"""Log weights tile by tile: the Pyro programs themselves, or tensor programs traced for this one
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from pyro_vae.compile.partition import SplitProgram
from pyro_vae.compile.trace import NotStageable, agree, check_tier, trace
from pyro_vae.data.loaders import Batch
from pyro_vae.errors import UserError
from pyro_vae.evaluation import fast_log_prob
from pyro_vae.evaluation.precision import FLOAT32, Precision
from pyro_vae.evaluation.proposals import Kernel, Proposal
from pyro_vae.memory import keep_freed_memory
from pyro_vae.pair.layouts import Score, plain_score
from pyro_vae.pair.runtime import Pair

Draw = Callable[[int], Tensor]
"""k -> the log weights of k fresh draws at each image of the tile, (k, B)"""
Weights = Callable[[Tensor, Mapping[str, Tensor]], Draw]
"""Gives fresh log weights for tiles of images that all have one size."""

WORTH_COMPILING = 60.0
"""Estimated seconds of evaluation from which compiling is worth its time."""
_FLOPS_PER_SECOND = 1e11
_TOLERANCE = (
    1e-4  # nats, relative to the log weight's size, against the eager program in the same noise
)
_ROUGHLY = 0.02  # the same for reduced precision, whose error is measured and told besides


class EagerWeights:
    """The Pyro programs themselves, for every tile of draws."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Draw:
        """The kernel's log weights."""
        return lambda k: self.kernel(x, fields, k, plain_score)


class TracedWeights:
    """The kernel as a tensor program for each number of draws; ``others`` is a tile of other rows
    to hold it against.
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
        """Trace the log weights of ``k`` draws, split and compile them, and hold them against the
        eager kernel.

        Raises:
            NotStageable: the reason, in one clause.
        """
        names, arguments = list(fields), [x, *fields.values()]

        def log_weights(score: Score) -> Callable[..., list[Tensor]]:
            return lambda x, *values: [
                self.kernel(x, dict(zip(names, values, strict=True)), k, score)
            ]

        batches = [arguments, [self.others[0], *(self.others[1][name] for name in names)]]
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            self.kernel(
                x, fields, k, plain_score
            )  # what a kernel reads from values, it reads now: a trace has none
            program = trace(log_weights(fast_log_prob.log_prob), arguments)
            eager, tolerance = log_weights(plain_score), _TOLERANCE
            if self.precision.reduced:
                agree(
                    SplitProgram(program, arguments, "graph"),
                    eager,
                    batches,
                    tolerance=tolerance,
                    floor=1.0,
                )
                self.precision.rewrite(program.graph)
                tolerance = _ROUGHLY
            keep_freed_memory()
            split = SplitProgram(program, arguments, self.tier)
            agree(split, eager, batches, tolerance=tolerance, floor=1.0)
        self._programs[k] = split


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
    kernel = proposal.kernel(pair)
    if compile == "off":
        if precision.reduced:
            raise UserError(
                "compile='off' runs the programs as they are, in float32: leave compile out "
                f"for {precision.words}"
            )
        return EagerWeights(kernel), "eager Pyro, as asked for"
    for every in (False, True):  # chosen beforehand: a dry run reads values, which a trace can't
        pair.layout(*first, every_value=every)
    seconds = (
        2.0 * sum(t.numel() for t in pair.tensors()) * num_images * num_samples / _FLOPS_PER_SECOND
    )
    note = "as asked for" if compile != "auto" else f"about {seconds:.0f} s of work"
    tiers = (
        ["inductor"]
        if compile == "inductor" or (compile == "auto" and seconds >= WORTH_COMPILING)
        else []
    )
    for tier in (*tiers, "graph"):
        weights = TracedWeights(kernel, tier, others, precision)
        try:
            weights.prepare(*first, chunk)
            return (
                weights,
                f"{'compiled by inductor' if tier == 'inductor' else 'traced graph, replayed'} "
                f"({note})",
            )
        except NotStageable as reason:
            note = str(reason)
    if precision.reduced:
        raise UserError(
            f"{precision.words} need a program that can be traced ({note}): use precision='float32'"
        )
    return EagerWeights(kernel), f"eager Pyro ({note})"
