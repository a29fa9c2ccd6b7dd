"""From gradients to parameters: the norm, what is not finite, clipping, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.health import Health, gradient_norm
from pyro_vae.row_tables import tables_of

Reduce = Callable[[Sequence[Tensor], Tensor], None]
"""Changes gradients and sums in place, between backward and update: where an all-reduce goes."""

KERNELS: dict[type, str] = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}
"""torch's own fused kernels, by private names; test_updates notices their loss."""


class Update:
    """Any torch optimiser, by its own ``step``; a step that is not finite leaves no trace."""

    def __init__(
        self,
        optim: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        health: Health,
        grad_clip: float | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self.optim, self.parameters, self.health = optim, list(parameters), health
        self.grad_clip, self.reduce = grad_clip, reduce
        self.rate = torch.zeros((), dtype=torch.float64, device=health.step.device)
        for group in optim.param_groups:
            group.setdefault("initial_lr", group["lr"])  # torch's own name for it, kept in its state_dict
        self.set_rate(1.0)

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates that the optimiser was made with; ``rate`` is where a graph reads it."""
        self.factor = factor
        for group in self.optim.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.rate.fill_(self.optim.param_groups[0]["lr"])

    def __call__(self, sums: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Change the parameters that have a gradient."""
        with torch.no_grad():
            if self.reduce is not None:  # every process must reduce the same list
                filled = zip(self.parameters, gradients, strict=True)
                gradients = [torch.zeros_like(p) if g is None else g for p, g in filled]
                self.reduce([g for g in gradients if g is not None], sums)
            reached = tuple(i for i, gradient in enumerate(gradients) if gradient is not None)
            given = [gradient for gradient in gradients if gradient is not None]
            watched = given and (self.health.skip or self.grad_clip is not None)
            norm = gradient_norm(given) if watched else None
            left_out = self.health.observe(sums, norm)
            if norm is not None and self.grad_clip is not None:
                given = list(torch._foreach_mul(given, clip_factor(norm, self.grad_clip)))
            if given:
                self.apply(reached, given, left_out)

    def apply(self, reached: tuple[int, ...], gradients: Sequence[Tensor], left_out: Tensor) -> None:
        """One step of the optimiser on the gradients of the parameters ``reached``."""
        for parameter in self.parameters:
            parameter.grad = None
        for i, gradient in zip(reached, gradients, strict=True):
            self.parameters[i].grad = gradient
        if getattr(self.optim, "_step_supports_amp_scaling", False):
            self.optim.found_inf = left_out  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
            self.optim.step()
            del self.optim.found_inf  # type: ignore[attr-defined]
        elif not left_out.item():  # no kernel of this optimiser leaves a step out by itself
            self.optim.step()


class AdamUpdate(Update):
    """Adam and AdamW by the kernel that their ``step`` calls, on their own state, without the bookkeeping."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        make_state(self.optim)
        self._lists: dict[tuple[int, ...], tuple[list[Tensor], ...]] = {}
        group = self.optim.param_groups[0]
        beta1, beta2 = group["betas"]
        self._fixed = {"beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"], "eps": group["eps"]}
        self._kernel: Any = getattr(torch, KERNELS[type(self.optim)])

    def apply(self, reached: tuple[int, ...], gradients: Sequence[Tensor], left_out: Tensor) -> None:
        """The kernel leaves the step out where ``left_out`` is 1."""
        parameters, steps, means, squares = self.lists(reached)
        torch._foreach_add_(steps, [1 - left_out] * len(steps))  # as a list: a lone tensor would be read by the host
        group = self.optim.param_groups[0]
        lr = group["lr"] if left_out.device.type == "cpu" else self.rate.float()  # a captured graph reads a tensor
        off = {"amsgrad": False, "maximize": False}
        state = means, squares, list[Tensor](), steps
        self._kernel(parameters, list(gradients), *state, lr=lr, found_inf=left_out, **off, **self._fixed)

    def lists(self, reached: tuple[int, ...]) -> tuple[list[Tensor], ...]:
        """These parameters with their steps and two moments, the optimiser's own."""
        if reached not in self._lists:
            parameters: list[Tensor] = [self.parameters[i] for i in reached]
            self._lists[reached] = parameters, *adam_state(self.optim, parameters)
        return self._lists[reached]


class WrittenAdam(AdamUpdate):
    """The same in operations that a compiler fuses with the gradients'; held against torch's own (test_updates)."""

    def apply(self, reached: tuple[int, ...], gradients: Sequence[Tensor], left_out: Tensor) -> None:
        """In place, as the kernel; the rate and the step's number are tensors."""
        parameters, *state = self.lists(reached)
        decoupled = type(self.optim) is torch.optim.AdamW
        adam(parameters, gradients, state, self.rate, left_out, decoupled, self.optim.param_groups[0])


def clip_factor(norm: Tensor, most: float) -> Tensor:
    """What gradients of this norm are multiplied by, as ``torch.nn.utils.clip_grad_norm_`` does."""
    return torch.clamp(most / (norm + 1e-6), max=1.0)


def is_plain_adam(optim: torch.optim.Optimizer) -> bool:
    """Adam or AdamW by its fused kernel, with one group and without AMSGrad: what the two quick forms are written for."""
    (group, *others) = optim.param_groups
    plain = type(optim) in KERNELS and bool(group.get("fused")) and not tables_of(optim)
    return plain and not others and not any(group.get(o) for o in ("amsgrad", "maximize", "differentiable"))


def make_state(optim: torch.optim.Optimizer) -> None:
    """The zeros that a fused Adam makes at its first step."""
    for parameter in optim.param_groups[0]["params"]:
        if not optim.state[parameter]:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
            optim.state[parameter] = {"step": step, **moments}


def adam_state(optim: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """(steps, first moments, second moments) of Adam, one tensor a parameter each: the optimiser's own."""
    return tuple([optim.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq"))


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
    kept = _once(1 - left_out) > 0
    number = steps[0].double()  # 1 − β^t loses its digits in float32
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
