"""The training step: the Pyro programs, ``backward`` and the optimiser, run eagerly or as one
traced graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pyro_vae.ambient import products_as, products_rounded
from pyro_vae.compile.trace import NotStageable, TensorFunction, agree, restored, trace
from pyro_vae.data.batches import Batch
from pyro_vae.data.observations import Observation
from pyro_vae.objectives import Loss
from pyro_vae.rng import kept_randomness
from pyro_vae.training.updates import (
    PLAIN,
    Apply,
    Update,
    adam_state,
    fused_adam,
    is_plain_adam,
    make_state,
    written_adam,
)

_MOST_SHAPES = 4

MOST_PARAMETERS = 1_000_000
"""Above it the optimiser's kernel outside a compiled program is quicker than inside
(benchmarks/training_step.py: conv).
"""

Gradients: TypeAlias = tuple[Tensor, list[Tensor | None] | None]
"""(sums, one gradient a parameter), or (sums, None) where the update is done already."""


class TrainStep:
    """Plain Pyro at every step. Called on a batch it leaves new parameters, and returns what is
    unread:

    (loss, reconstruction, KL) summed over the batch, ``(3,)`` float64.
    """

    tier = "off"
    together = 1  # the steps that one call of `run` takes best
    apply: Apply | None = None  # a quicker form of the optimiser's step

    def __init__(
        self,
        loss: Loss,
        parameters: Sequence[nn.Parameter],
        update: Update,
        observe: Observation | None = None,
    ) -> None:
        self.loss, self.parameters = loss, list(parameters)
        self.update, self.observe = update, observe

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """Gradients, then the update."""
        sums, gradients = self.gradients(x, fields)
        if gradients is not None:
            self.update(sums, gradients, self.apply)
        return sums

    def run(self, batches: Sequence[Batch], schedules: Sequence[tuple[float, float]]) -> Tensor:
        """A step on each batch, at its factor of the learning rate and its KL weight; their sums
        together.
        """
        total: Any = 0.0
        for batch, (rate, weight) in zip(batches, schedules, strict=True):
            self.update.set_rate(rate)
            self.loss.kl_weight.fill_(weight)
            total = total + self(*batch)
        return total

    def gradients(self, x: Tensor, fields: Mapping[str, Tensor]) -> Gradients:
        """The sums, and each parameter's gradient of the mean loss of an image: None where the step
        does not reach it.

        ``backward`` accumulates into the parameters' ``grad``, as torch's own users have it.
        """
        for parameter in self.parameters:
            parameter.grad = None
        with buffers_in_place(self.loss.pair.modules):
            sums, mean = self.mean_loss(x, fields)
            if mean.requires_grad:
                mean.backward(inputs=self.parameters)
        return sums, [parameter.grad for parameter in self.parameters]

    def mean_loss(self, x: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The three sums, and the mean loss of an image, 0-dim, with its graph."""
        seen = self.loss.pair.cast(x if self.observe is None else self.observe(x))
        rounded = self.loss.rounded
        with products_rounded(seen.device.type) if rounded else nullcontext():
            estimate = self.loss.step(seen, fields)
        return estimate.figures(), estimate.loss / (estimate.plate_scale * len(x))

    def check(self, *batches: Batch) -> None:
        """Nothing: this is what a staged step is compared with."""

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Steps inside leave no trace: not in parameters, optimiser, buffers and health, nor in the
        random numbers.
        """
        state = [
            each
            for own in self.update.optim.state.values()
            for each in own.values()
            if isinstance(each, Tensor)
        ]
        pair, device = self.loss.pair, self.update.rate.device
        scalars = self.update.rate, self.loss.kl_weight, *self.update.health.tensors
        tensors = [*pair.tensors(), *self.parameters, *state, *scalars]
        buffers = [(module._buffers, dict(module._buffers)) for module in pair.modules]
        try:
            with kept_randomness(device), restored(tensors):
                yield
        finally:
            for own, kept in buffers:
                own.update(kept)
            self.update.optim.zero_grad()


class StagedStep(TrainStep):
    """The same as one function of tensors: parameters, optimiser state, buffers, KL weight, rate
    and batch.

    Traced once for each shape of a batch, and replayed; in the tier ``inductor`` compiled for the
    first shape. Adam and AdamW are inside. Any other optimiser, or one that waits for an
    all-reduce, steps outside the program of the gradients.
    """

    def __init__(self, eager: TrainStep, tier: str) -> None:
        super().__init__(eager.loss, eager.parameters, eager.update, eager.observe)
        self.tier, self.num_nodes, self.host_reads = tier, 0, list[str]()
        self._programs: dict[Any, tuple[TensorFunction, list[bool]] | None] = {}
        self.adam = is_plain_adam(self.update.optim) and self.update.reduce is None
        if self.adam:
            make_state(self.update.optim)
        self.inside = self.adam and (tier != "inductor" or self._pays_inside())
        self.apply = fused_adam if self.adam else None

    def _pays_inside(self) -> bool:
        """Whether Adam is quicker inside a compiled program, which has one number of steps for all
        parameters.
        """
        steps, *_ = adam_state(self.update.optim, self.parameters)
        return (
            len(set(map(float, steps))) == 1
            and sum(p.numel() for p in self.parameters) <= MOST_PARAMETERS
        )

    def prepare(self, *batches: Batch) -> None:
        """Trace (and compile) the step for batches like the first one, and `check` it on all of
        them.

        Raises:
            NotStageable: the reason, in one clause.
        """
        (x, fields), compiled = batches[0], self.tier == "inductor" and not self._programs
        names, arguments, reached = list(fields), [x, *fields.values()], list[bool]()

        def pure(x: Tensor, *values: Tensor) -> list[Tensor]:
            with buffers_in_place(self.loss.pair.modules):
                sums, mean = self.mean_loss(x, dict(zip(names, values, strict=True)))
                found = torch.autograd.grad(mean, self.parameters, allow_unused=True)
            memory: set[int] = set()
            gradients = [_own(p, g, memory) for p, g in zip(self.parameters, found, strict=True)]
            if self.inside:
                self.update(sums, gradients, written_adam if compiled else fused_adam)
                return [sums]
            reached[:] = [gradient is not None for gradient in gradients]
            return [sums, *(g for g in gradients if g is not None)]

        with self.undone():
            program = trace(pure, arguments)
            # one frame less in the loop than `program` itself
            replay: TensorFunction = partial(program.graph, *program.captured)
            run = program.compile(arguments) if compiled else replay
        self.num_nodes, self.host_reads = len(program.graph.graph.nodes), program.host_reads
        self._programs[x.shape, x.dtype] = run, reached
        self.check(*batches)

    def gradients(self, x: Tensor, fields: Mapping[str, Tensor]) -> Gradients:
        """One run of the program for this shape: a new one is traced, and eager Pyro serves where
        that can't be.
        """
        key = x.shape, x.dtype
        if key not in self._programs:
            self._programs[key] = None
            if len(self._programs) <= _MOST_SHAPES:
                try:
                    self.prepare((x, dict(fields)))
                except NotStageable:  # the first shape was traced, so this is the odd batch
                    self._programs[key] = None
        program = self._programs[key]
        if program is None:
            return super().gradients(x, fields)
        run, reached = program
        with torch.no_grad():
            sums, *found = run(x, *fields.values())
        given = iter(found)
        return sums, None if self.inside else [next(given) if each else None for each in reached]

    def check(self, *batches: Batch) -> None:
        """Compare the step with eager Pyro and torch's own optimiser, in its plain form, on each
        batch; all is put back.

        Adam begins from second moments of one and takes a large step: from zeros the step is the
        gradient's sign, which rounding decides. Of another optimiser, whose own ``step`` runs in
        either form, the gradients are compared.

        Raises:
            NotStageable: they differ, and by how much.
        """
        rate, names = 100.0, list(batches[0][1])
        plain = self.update.like({**PLAIN, "initial_lr": rate})
        eager = TrainStep(self.loss, self.parameters, plain, self.observe)
        states = [plain.optim.state[p] for p in self.parameters] if self.adam else []
        buffers = [each for each in self.loss.pair.buffers() if each.is_floating_point()]

        def outcome(step: TrainStep) -> TensorFunction:
            def run(x: Tensor, *values: Tensor) -> list[Tensor]:
                fields = dict(zip(names, values, strict=True))
                with self.undone():
                    self.update.rate.fill_(rate)
                    for state in states:
                        (
                            state["step"].fill_(1.0),
                            state["exp_avg"].fill_(0.0),
                            state["exp_avg_sq"].fill_(1.0),
                        )
                    if self.adam:
                        sums, found = step(x, fields), [state["exp_avg"] for state in states]
                    else:
                        sums, gradients = step.gradients(x, fields)
                        pairs = zip(self.parameters, gradients or (), strict=True)
                        found = [torch.zeros_like(p) if g is None else g for p, g in pairs]
                    return [
                        each.detach().clone() for each in (sums, *found, *self.parameters, *buffers)
                    ]

            return run

        arguments = [[x, *(fields[name] for name in names)] for x, fields in batches]
        groups = [1, len(self.parameters), len(self.parameters)]
        with products_as("ieee"):  # under TF32 two right steps differ by a thousandth
            # a compiler leaves out roundings to bfloat16 between operations that it fuses
            tolerance = 1e-2 if self.loss.rounded else 1e-4
            agree(outcome(self), outcome(eager), arguments, groups, tolerance)


@contextmanager
def buffers_in_place(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A buffer that a program assigns again inside is the same tensor with new values on leaving: a
    traced step's state.
    """
    before = [
        (m._buffers, name, buffer)
        for m in modules
        for name, buffer in m._buffers.items()
        if buffer is not None
    ]
    yield
    with torch.no_grad():
        for own, name, buffer in before:
            new = own.get(name)
            if (
                new is not None
                and new is not buffer
                and (new.shape, new.dtype) == (buffer.shape, buffer.dtype)
            ):
                own[name] = buffer.copy_(new)


def _own(parameter: Tensor, gradient: Tensor | None, memory: set[int]) -> Tensor | None:
    """What ``backward`` does for a parameter's ``grad``: memory of its own, in the parameter's
    layout.

    A gradient may come in another layout (einsum, a transposed weight, an expanded number), and
    fused kernels read raw memory; or two parameters may share one (a + b).
    """
    if gradient is None:
        return None
    place = gradient.untyped_storage().data_ptr()
    if gradient.stride() != parameter.stride() or place in memory:
        gradient = torch.empty_like(parameter).copy_(gradient)
    memory.add(place)
    return gradient
