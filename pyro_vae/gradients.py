"""One batch's figures and the gradient of its mean loss: plain Pyro and ``backward``, or that step traced once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.objectives import Loss
from pyro_vae.observation import Observation
from pyro_vae.staging import NotStageable, agree, buffers_written, own_buffers, trace

_MOST_SHAPES = 4


class Gradients:
    """Plain Pyro at every step: ``backward`` accumulates into the parameters' ``grad``, as torch's own users have it.

    Called on a batch it returns (loss, reconstruction, KL) summed over the batch, ``(3,)`` float64 and unread, and each
    parameter's gradient of the mean loss of an image: in the parameter's memory layout, None where the step does not
    reach it.
    """

    tier = "off"

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter], observe: Observation | None = None) -> None:
        self.loss, self.parameters, self.observe = loss, list(parameters), observe

    def mean_loss(self, x: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The three sums, and the mean loss of an image, 0-dim, with its graph."""
        seen = self.loss.pair.cast(x if self.observe is None else self.observe(x))
        estimate = self.loss.step(seen, fields)
        return estimate.figures(), estimate.loss / (estimate.plate_scale * len(x))

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """One run of the programs and its backward pass."""
        for parameter in self.parameters:
            parameter.grad = None
        sums, mean = self.mean_loss(x, fields)
        if mean.requires_grad:
            mean.backward(inputs=self.parameters)
        return sums, [parameter.grad for parameter in self.parameters]


class TracedGradients(Gradients):
    """The same as a tensor program, traced once for each shape of a batch; replayed, or compiled for the first shape."""

    def __init__(self, eager: Gradients, tier: str) -> None:
        super().__init__(eager.loss, eager.parameters, eager.observe)
        self.tier, self.num_nodes = tier, 0
        self.buffers: list[tuple[nn.Module, str]] = []  # those that a step writes, as BatchNorm does
        self._programs: dict[Any, Callable[..., Any] | None] = {}

    def pure(self, x: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        """The step as a function: sums, gradients, and the buffers as they are after it; written to be traced."""
        with own_buffers(self.buffers) as written:
            sums, mean = self.mean_loss(x, fields)
            found = torch.autograd.grad(mean, self.parameters, allow_unused=True)
            memory: set[int] = set()
            gradients = [_own(p, g, memory) for p, g in zip(self.parameters, found, strict=True)]
            return sums, gradients, written()

    def prepare(self, x: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Trace (and compile) the step for batches like ``x``, and hold it against the programs on them.

        Raises:
            NotStageable: the reason, in one clause.
        """
        names, reached, num_buffers = list(fields), list[int](), 0
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            self.buffers = buffers_written(self.loss.pair.modules, lambda: self.mean_loss(x, fields))

            def flat(x: Tensor, *values: Tensor) -> list[Tensor]:
                nonlocal reached, num_buffers
                sums, gradients, buffers = self.pure(x, dict(zip(names, values, strict=True)))
                reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
                num_buffers = len(buffers)
                return [sums, *(g for g in gradients if g is not None), *buffers]

            arguments = [x, *fields.values()]
            program = trace(flat, arguments)
            self.num_nodes = len(program.graph.graph.nodes)
            run: Callable[..., Any] = program
            if self.tier == "inductor" and not self._programs:
                run = program.compile(arguments)
            first = list(reached)
            agree(run, flat, [arguments], [1, len(reached)])
        places: list[Any] = [module._buffers[name] for module, name in self.buffers]

        def step(x: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor | None]]:
            sums, *rest = run(x, *fields.values())
            gradients: list[Tensor | None] = [None] * len(self.parameters)
            for i, gradient in zip(first, rest, strict=False):
                gradients[i] = gradient
            if places:
                torch._foreach_copy_(places, rest[len(first) :])
            return sums, gradients

        self._programs[shape_of(x)] = step

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Run the program for this shape; a new shape is traced, or runs eagerly where that can't be."""
        key = shape_of(x)
        if key not in self._programs:
            self._programs[key] = None
            if len(self._programs) <= _MOST_SHAPES:
                try:
                    self.prepare(x, fields)
                except NotStageable:  # the first shape was traced, so this is the odd batch: eager Pyro serves
                    self._programs[key] = None
        program = self._programs[key]
        if program is None:
            return super().__call__(x, fields)
        with torch.no_grad():
            result: tuple[Tensor, list[Tensor | None]] = program(x, fields)
        return result


def _own(parameter: Tensor, gradient: Tensor | None, memory: set[int]) -> Tensor | None:
    """What ``backward`` does for a parameter's ``grad``: memory of its own, in the parameter's layout.

    A gradient may come in another layout (einsum, a transposed weight, an expanded number), and fused kernels read raw
    memory; or two parameters may share one (a + b).
    """
    if gradient is None:
        return None
    place = gradient.untyped_storage().data_ptr()
    if gradient.stride() != parameter.stride() or place in memory:
        size, stride = parameter.size(), parameter.stride()
        own = torch.empty_strided(size, stride, dtype=parameter.dtype, device=parameter.device)
        gradient = own.copy_(gradient)
    memory.add(place)
    return gradient


def shape_of(x: Tensor) -> Any:
    """What a program is made for."""
    return tuple(x.shape), x.dtype
