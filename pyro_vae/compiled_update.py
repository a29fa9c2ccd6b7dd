"""One training step as one compiled program: gradients, clipping and Adam, with the optimiser's own state tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.health import gradient_norm
from pyro_vae.objectives import Loss
from pyro_vae.staging import NotStageable, trace
from pyro_vae.steps import StagedStep, largest_error, shape_of
from pyro_vae.updates import OptimizerUpdate, Update, adam_state, clip_factor, is_plain_adam

MOST_PARAMETERS = 1_000_000
"""Above it the optimiser's own kernel is the quicker form (benchmarks/training_step.py: conv against digits)."""

_TOLERANCE = 1e-4  # largest gradient error over the largest gradient, float32


def serves(optim: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> bool:
    """Whether this form is written for the optimiser, and pays."""
    return is_plain_adam(optim) and sum(p.numel() for p in parameters) <= MOST_PARAMETERS


class CompiledUpdate(Update):
    """The compiled form for batches of one shape; an odd one (the last of a pass) takes the other form.

    Both change the same tensors, ``optim.state``, so that the optimiser's ``state_dict`` is whole after any step.
    """

    form = "optimiser inside the graph"

    def __init__(self, beside: OptimizerUpdate, staged: StagedStep) -> None:
        super().__init__(beside.optim, beside.health)
        self.beside, self.staged = beside, staged
        self.rate = torch.tensor(0.0, dtype=torch.float64, device=beside.health.step.device)
        self._shape: Any = None
        self._program: Callable[..., Sequence[Tensor]] | None = None
        self._state: list[Tensor] = []

    def set_rate(self, factor: float) -> None:
        """The learning rate as an input of the program, and where the other form reads it."""
        self.beside.set_rate(factor)
        self.rate.fill_(self.optim.param_groups[0]["lr"])

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One step."""
        if self._program is None or shape_of(x) != self._shape:
            return self.beside(x, fields)
        with torch.no_grad():
            sums, *buffers = self._program(x, *fields.values(), *self._state)
            self.staged.write_buffers(buffers)
        return sums

    def prepare(self, x: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Compile for batches like ``x``, and hold a step against the eager programs and the optimiser's own kernel.

        Raises:
            NotStageable: the reason, in one clause.
        """
        parameters, group = self.staged.parameters, self.optim.param_groups[0]
        make_state(self.optim)
        steps, means, squares = adam_state(self.optim, parameters)
        num_fields, num_steps = len(fields), len(parameters)
        gradients_of, buffers_of = self.staged.compute, self.staged.with_own_buffers
        names, clip, health = list(fields), self.beside.grad_clip, self.health

        def pure(x: Tensor, *rest: Tensor) -> list[Tensor]:
            given, (kl_weight, rate, *others) = rest[:num_fields], rest[num_fields:]
            seen = replace(health, step=others[0], first_bad=others[1], num_bad=others[2])
            state = [others[3 + i * num_steps : 3 + (i + 1) * num_steps] for i in range(3)]
            with buffers_of() as buffers, _standing_in(self.staged.loss, kl_weight):
                sums, *gradients = gradients_of(x, dict(zip(names, given, strict=True)))
                written = buffers()
            with torch.no_grad():
                norm = gradient_norm(gradients) if seen.skip or clip is not None else None
                left_out = seen.observe(sums, norm)
                if norm is not None and clip is not None:
                    gradients = [gradient * clip_factor(norm, clip) for gradient in gradients]
                adam(parameters, gradients, state, rate, left_out, type(self.optim) is torch.optim.AdamW, group)
            return [sums, *written]

        self._state = [self.staged.loss.kl_weight, self.rate, *self.health.tensors, *steps, *means, *squares]
        arguments = [x, *fields.values(), *self._state]
        with (
            torch.random.fork_rng([x.device] if x.device.type == "cuda" else []),
            restored([*parameters, *self._state]),
        ):
            self._program = self._kept_or_compiled(pure, arguments, x, fields)
        self._shape = shape_of(x)

    def _kept_or_compiled(
        self, pure: Callable[..., Any], arguments: Sequence[Tensor], x: Tensor, fields: Mapping[str, Tensor]
    ) -> Callable[..., Sequence[Tensor]]:
        fresh = self._compile(pure, arguments)
        _check(self, fresh, x, fields)
        return fresh

    def _compile(self, pure: Callable[..., Any], arguments: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        traced = trace(pure, arguments)
        try:
            return traced.compile(arguments)
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise NotStageable(f"inductor failed ({type(error).__name__}: {reason[:160]})") from error


def adam(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: Sequence[Sequence[Tensor]],
    rate: Tensor,
    left_out: Tensor,
    decoupled: bool,
    group: Mapping[str, Any],
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1) or AdamW (Loshchilov & Hutter 2019, algorithm 2), in place.

    ``state``: steps, first and second moments. Where ``left_out`` is 1 nothing changes. Written to be traced: the
    learning rate and the step's number are tensors.
    """
    (beta1, beta2), decay, eps = group["betas"], group["weight_decay"], group["eps"]
    steps, means, squares = state
    for step in steps:
        step.add_(1 - left_out)
    number = steps[0].double()  # 1 − β^t loses its digits in float32
    kept = _once(1 - left_out) > 0
    sizes = _each(rate / (1 - beta1**number), parameters)
    inverse_roots = _each((1 - beta2**number).rsqrt(), parameters)
    shrinks = _each(1 - rate * decay, parameters)
    for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
        dtype, value = parameter.dtype, parameter.detach()
        if decay and decoupled:
            value = value * shrinks[dtype]
        elif decay:
            gradient = gradient + decay * value
        new_mean = mean + (gradient - mean) * (1 - beta1)
        new_square = square * beta2 + gradient * gradient * (1 - beta2)
        moved = value - sizes[dtype] * new_mean / (new_square.sqrt() * inverse_roots[dtype] + eps)
        parameter.copy_(torch.where(kept, moved, parameter.detach()))
        mean.copy_(torch.where(kept, new_mean, mean))
        square.copy_(torch.where(kept, new_square, square))


def _each(number: Tensor, parameters: Sequence[Tensor]) -> dict[torch.dtype, Tensor]:
    """The number in each dtype of the parameters."""
    return {dtype: _once(number.to(dtype)) for dtype in {parameter.dtype for parameter in parameters}}


def _once(number: Tensor) -> Tensor:
    """The same number as a maximum, which a compiler computes once: what is pointwise it would compute at every element."""
    return number.expand(16).amax()


def make_state(optim: torch.optim.Optimizer) -> None:
    """Let the optimiser make the state that it makes at its first step, without taking one."""
    parameters = [p for group in optim.param_groups for p in group["params"]]
    if all(p in optim.state for p in parameters):
        return
    gradients = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with restored(parameters):
        optim.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
        for tensor in optim.state[parameter].values():
            tensor.zero_()


@contextmanager
def _standing_in(loss: Loss, kl_weight: Tensor) -> Iterator[None]:
    """The loss with this tensor for its KL weight: an input of the program, so that it serves another training's too."""
    own = loss.kl_weight
    loss.kl_weight = kl_weight
    try:
        yield
    finally:
        loss.kl_weight = own


class restored:
    """Give tensors their values back on leaving."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [tensor.detach() for tensor in tensors]

    def __enter__(self) -> None:
        self.values = [tensor.clone() for tensor in self.tensors]

    def __exit__(self, *_: object) -> None:
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)


def _check(update: CompiledUpdate, program: Any, x: Tensor, fields: Mapping[str, Tensor]) -> None:
    """Two batches, two noises: sums and gradients (read off the first moments) against the eager programs, and the new
    parameters against the optimiser's own kernel on those gradients."""
    parameters, optim = update.staged.parameters, update.optim
    steps, means, squares = adam_state(optim, parameters)
    before = [p.detach().clone() for p in parameters]
    group = optim.param_groups[0]
    for seed, batch in enumerate((x, x.flip(0))):
        named = fields if seed == 0 else {name: value.flip(0) for name, value in fields.items()}
        for tensor in (*steps, *means, *squares):
            tensor.zero_()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.detach().copy_(value)
        torch.manual_seed(seed)
        with update.staged.with_own_buffers():
            sums, *gradients = update.staged.compute(batch, named)
        update.rate.fill_(group["lr"])
        torch.manual_seed(seed)
        with torch.no_grad():
            found, *_ = program(batch, *named.values(), *update._state)
            taken = [mean / (1 - group["betas"][0]) for mean in means]
        clip, decay = update.beside.grad_clip, 0.0 if type(optim) is torch.optim.AdamW else group["weight_decay"]
        factor = 1.0 if clip is None else clip_factor(gradient_norm(gradients), clip)
        expected = [g * factor + decay * value for g, value in zip(gradients, before, strict=True)]
        for what, ours, theirs in (("sums", [found], [sums]), ("gradients", taken, expected)):
            error, size = largest_error(ours, theirs)
            if not error <= _TOLERANCE * size + torch.finfo(torch.float32).tiny:
                raise NotStageable(
                    f"the {what} of the compiled step differ from the eager ones by {error:.1e} of {size:.1e}"
                )
        moved = [p.detach().clone() for p in parameters]
        _take_step(optim, parameters, before, taken, decay)
        error, _ = largest_error(moved, [p.detach() for p in parameters])
        if not error <= 1e-3 * group["lr"]:
            raise NotStageable(
                f"the compiled optimiser differs from torch's by {error:.1e} at learning rate {group['lr']:.1e}"
            )


def _take_step(
    optim: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    before: Sequence[Tensor],
    gradients: Sequence[Tensor],
    decay: float,
) -> None:
    """The optimiser's own first step from ``before``; it adds ``decay · parameter`` to the gradients by itself."""
    for values in optim.state.values():
        for tensor in values.values():
            tensor.zero_()
    for parameter, value, gradient in zip(parameters, before, gradients, strict=True):
        parameter.detach().copy_(value)
        parameter.grad = gradient - decay * value
    optim.step()
