"""One training step's gradients in three tiers: compiled by inductor, the traced graph replayed, plain eager Pyro."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.objectives import Estimate, Loss
from pyro_vae.observation import Observation
from pyro_vae.staging import NotStageable, TensorProgram, own_buffers, trace

_TOLERANCE = 1e-4  # largest gradient error over the largest gradient, float32
_MOST_SHAPES = 4


class Step(ABC):
    """Called on a batch: leaves the gradient of the mean loss in the parameters' ``grad``, returns the three sums."""

    tier: str
    parameters: Sequence[nn.Parameter]

    @abstractmethod
    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """(loss, reconstruction, KL) summed over the batch, ``(3,)`` float64; on the device, unread."""


def figures(estimate: Estimate) -> Tensor:
    """(loss without the plate's scale, reconstruction, KL), summed over the batch: ``(3,)`` float64."""
    return torch.stack((estimate.loss.detach() / estimate.plate_scale, estimate.reconstruction, estimate.kl)).double()


class EagerStep(Step):
    """The Pyro programs themselves, at every step."""

    tier = "off"

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter], observe: Observation | None) -> None:
        self.loss, self.parameters, self.observe = loss, parameters, observe

    def compute(self, x: Tensor, fields: Mapping[str, Tensor]) -> list[Tensor]:
        """[figures, *gradients of the mean loss per image]."""
        seen = self.loss.pair.cast(x if self.observe is None else self.observe(x))
        estimate = self.loss.step(seen, fields)
        per_image = estimate.loss / (estimate.plate_scale * len(x))
        return [figures(estimate), *torch.autograd.grad(per_image, self.parameters, materialize_grads=True)]

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One run of the programs and its backward pass."""
        sums, *gradients = self.compute(x, fields)
        self.set_gradients(gradients)
        return sums

    def set_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Where an optimiser, a clipping or an all-reduce finds them."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


class StagedStep(EagerStep):
    """The step as a tensor program: traced once for each shape of a batch, replayed or compiled."""

    def __init__(self, eager: EagerStep, tier: str) -> None:
        super().__init__(eager.loss, eager.parameters, eager.observe)
        self.tier = tier
        self._buffers: list[tuple[nn.Module, str]] = []
        self._originals: list[Tensor] = []
        self._programs: dict[Any, Callable[..., Sequence[Tensor]] | None] = {}

    def prepare(self, x: Tensor, fields: Mapping[str, Tensor]) -> TensorProgram:
        """Trace (and compile) the step for batches like ``x``, and hold it against the eager program.

        Raises:
            NotStageable: the reason, in one clause.
        """
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            return self._prepare(x, fields)

    def _prepare(self, x: Tensor, fields: Mapping[str, Tensor]) -> TensorProgram:
        self._find_buffers(x, fields)
        names = list(fields)

        def pure(x: Tensor, *values: Tensor) -> list[Tensor]:
            with self.with_own_buffers() as buffers:
                return [*self.compute(x, dict(zip(names, values, strict=True))), *buffers()]

        arguments = [x, *fields.values()]
        program = trace(pure, arguments)
        run: Callable[..., Sequence[Tensor]] = program
        if self.tier == "inductor" and not self._programs:
            try:
                run = program.compile(arguments)
            except Exception as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                raise NotStageable(f"inductor failed ({type(error).__name__}: {reason[:160]})") from error
        self._check(run, pure, arguments)
        self._programs[shape_of(x)] = run
        return program

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """Run the program for this shape; a shape that is new is traced, or run eagerly where that can't be."""
        key = shape_of(x)
        if key not in self._programs:
            self._add(key, x, fields)
        program = self._programs[key]
        if program is None:
            return super().__call__(x, fields)
        with torch.no_grad():
            sums, *rest = program(x, *fields.values())
            self.set_gradients(rest[: len(self.parameters)])
            self.write_buffers(rest[len(self.parameters) :])
        return sums

    def write_buffers(self, values: Sequence[Tensor]) -> None:
        """Put the buffers that a program returned in the place of the modules' own."""
        if self._originals:
            torch._foreach_copy_(self._originals, list(values))

    @contextmanager
    def with_own_buffers(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Inside, what a step writes into buffers goes into clones, which the function that is given reads."""
        with own_buffers(self._buffers):
            yield lambda: [_buffer(place) for place in self._buffers]

    def _add(self, key: Any, x: Tensor, fields: Mapping[str, Tensor]) -> None:
        self._programs[key] = None
        if len(self._programs) <= _MOST_SHAPES:
            try:
                self.prepare(x, fields)
            except NotStageable:  # the first shape was staged, so this is the odd batch: eager serves
                self._programs[key] = None

    def _find_buffers(self, x: Tensor, fields: Mapping[str, Tensor]) -> None:
        """The buffers that a training step changes (BatchNorm's), found by running one; its change is undone."""
        places = [(m, name) for m in self.loss.pair.modules for name, b in m._buffers.items() if b is not None]
        copies = [_buffer(place).clone() for place in places]
        self.compute(x, fields)
        # by value: BatchNorm's kernel writes its running statistics without a new version
        written = [i for i, place in enumerate(places) if not torch.equal(_buffer(place), copies[i])]
        for i in written:
            _buffer(places[i]).copy_(copies[i])
        self._buffers = [places[i] for i in written]
        self._originals = [_buffer(place) for place in self._buffers]

    def _check(
        self, run: Callable[..., Sequence[Tensor]], eager: Callable[..., Any], arguments: Sequence[Tensor]
    ) -> None:
        """Loss, gradients and buffers against the eager program, on two batches with two noises."""
        x, *values = arguments
        batches = [arguments, [x.flip(0), *(value.flip(0) for value in values)]]
        for seed, batch in enumerate(batches):
            torch.manual_seed(seed)
            expected = eager(*batch)
            torch.manual_seed(seed)
            with torch.no_grad():
                found = run(*batch)
            for part in (slice(0, 1), slice(1, 1 + len(self.parameters)), slice(1 + len(self.parameters), None)):
                error, size = largest_error(found[part], expected[part])
                if not error <= _TOLERANCE * size + torch.finfo(torch.float32).tiny:
                    raise NotStageable(f"the tensor program differs from the eager one by {error:.1e} of {size:.1e}")


def shape_of(x: Tensor) -> Any:
    """What a program is compiled for."""
    return tuple(x.shape), x.dtype


def _buffer(place: tuple[nn.Module, str]) -> Tensor:
    buffer = place[0]._buffers[place[1]]
    assert buffer is not None
    return buffer


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference in a group of tensors, and the largest value there."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if b.numel()]
    if not pairs:
        return 0.0, 1.0
    error = torch.stack([(a - b).abs().max() for a, b in pairs]).max()
    return float(error), float(torch.stack([b.abs().max() for _, b in pairs]).max())
