"""The training step: gradients, then the update; staged it is held against eager Pyro and torch's plain optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pyro_vae.batches import Batch
from pyro_vae.gradients import Gradients, TracedGradients, shape_of
from pyro_vae.staging import agree, restored, trace
from pyro_vae.updates import AdamUpdate, Update, WrittenAdam, adam_state


class TrainStep:
    """Called on a batch: leaves new parameters and returns (loss, reconstruction, KL) summed over it, ``(3,)``, unread."""

    def __init__(self, gradients: Gradients, update: Update) -> None:
        self.gradients, self.update = gradients, update

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """Gradients, then the update."""
        sums, gradients = self.gradients(x, fields)
        self.update(sums, gradients)
        return sums

    def check(self, batches: Sequence[Batch]) -> None:
        """Hold a staged step against eager Pyro and torch's own optimiser, unfused, on each batch; all is put back.

        Adam begins from second moments of one and takes a large step: from zeros the step is the gradient's sign, which
        rounding decides. Of another optimiser, whose own ``step`` runs in either form, the gradients are compared.

        Raises:
            NotStageable: they differ, and by how much.
        """
        gradients, update, optim = self.gradients, self.update, self.update.optim
        parameters, inside = gradients.parameters, isinstance(update, AdamUpdate) and update.reduce is None
        eager = Gradients(gradients.loss, parameters, gradients.observe)
        buffers = [b for module in gradients.loss.pair.modules for b in module.buffers(recurse=False)]
        state = list(chain(*adam_state(optim, parameters))) if inside else []
        places = [*(p.detach() for p in parameters), *buffers]
        before = [tensor.clone() for tensor in places]
        names, factor, device = list(batches[0][1]), update.factor, parameters[0].device

        def stock(x: Tensor, *values: Tensor) -> list[Tensor]:
            begin()
            sums, found = eager(x, dict(zip(names, values, strict=True)))
            if not inside:
                return [sums, *map(_filled, parameters, found)]
            if update.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, update.grad_clip)
            with unfused(optim):
                optim.step()
            return [sums, *outcome()]

        def staged(x: Tensor, *values: Tensor) -> list[Tensor]:
            begin()
            fields = dict(zip(names, values, strict=True))
            if inside:
                return [self(x, fields), *outcome()]
            sums, found = gradients(x, fields)
            return [sums, *map(_filled, parameters, found)]

        def begin() -> None:
            with torch.no_grad():
                for tensor, kept in zip(places, before, strict=True):
                    tensor.copy_(kept)
                for name, value in (("step", 1.0), ("exp_avg", 0.0), ("exp_avg_sq", 1.0)) if inside else ():
                    for parameter in parameters:
                        optim.state[parameter][name].fill_(value)

        def outcome() -> list[Tensor]:
            means = [optim.state[p]["exp_avg"].clone() for p in parameters]
            return [*means, *(p.detach().clone() for p in parameters)]

        fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with fork, restored([*parameters, *buffers, *state, *update.health.tensors]):
            try:
                update.set_rate(100.0 / optim.param_groups[0]["initial_lr"])
                arguments = [[x, *(fields[name] for name in names)] for x, fields in batches]
                agree(staged, stock, arguments, [1, len(parameters)])
            finally:
                update.set_rate(factor)


def _filled(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.clone()


class CompiledStep(TrainStep):
    """Gradients, clipping and Adam as one compiled program, for one shape of a batch; another takes the other form."""

    def __init__(self, gradients: TracedGradients, update: AdamUpdate, x: Tensor, fields: Mapping[str, Tensor]) -> None:
        super().__init__(gradients, update)
        names, self._shape = list(fields), shape_of(x)
        inside = WrittenAdam(update.optim, update.parameters, update.health, update.grad_clip)
        inside.rate = update.rate

        def pure(x: Tensor, *values: Tensor) -> list[Tensor]:
            sums, found, buffers = gradients.pure(x, dict(zip(names, values, strict=True)))
            inside(sums, found)
            return [sums, *buffers]

        arguments = [x, *fields.values()]
        state = [t for p in update.parameters for t in update.optim.state[p].values()]
        with (
            torch.random.fork_rng([x.device] if x.device.type == "cuda" else []),
            restored([*update.parameters, *state, *update.health.tensors]),
        ):
            self._program = trace(pure, arguments).compile(arguments)
        self._places: list[Any] = [module._buffers[name] for module, name in gradients.buffers]

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One run of the program."""
        if shape_of(x) != self._shape:
            return super().__call__(x, fields)
        with torch.no_grad():
            sums, *buffers = self._program(x, *fields.values())
            if buffers:
                torch._foreach_copy_(self._places, buffers)
        return sums


@contextmanager
def unfused(optim: torch.optim.Optimizer) -> Iterator[None]:
    """The optimiser's plain loop over parameters."""
    names = ("fused", "foreach")
    kept: list[tuple[Any, dict[str, Any]]] = [
        (group, {name: group[name] for name in names if name in group}) for group in optim.param_groups
    ]
    for group, _ in kept:
        group.update(fused=False, foreach=False)
    try:
        yield
    finally:
        for group, values in kept:
            group.update(values)
