"""Parameter updates: gradient norm, finiteness, clipping, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Health:
    """A step that is not finite leaves no trace in parameters and optimiser.

    ``skip=False``: from the first step on whose loss is not finite, nothing changes any more.
    Gradients are not looked at, which would cost a tenth of a small net's step: one that is not
    finite under a finite loss shows in the next loss. ``skip=True``: steps whose loss or gradient
    is not finite are left out, and counted. `read` is the one host read.
    """

    step: Tensor  # 0-dim int64: steps that were tried
    first_bad: Tensor  # 0-dim int64: the first one that was not finite, or −1
    num_bad: Tensor  # 0-dim int64
    skip: bool = False

    @staticmethod
    def on(device: torch.device, *, skip: bool = False) -> Health:
        """The memory of a training that begins."""
        first, none = (
            torch.tensor(-1, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        return Health(none.clone(), first, none.clone(), skip)

    def begin(self, step: int, num_bad: int) -> None:
        """Remember no more than that so many steps were tried, and so many left out: where a
        training goes on.
        """
        for tensor, value in zip(self.tensors, (step, -1, num_bad), strict=True):
            tensor.fill_(value)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a compiled step changes in place."""
        return self.step, self.first_bad, self.num_bad

    def observe(self, sums: Tensor, norm: Tensor | None) -> Tensor:
        """1 where this step must leave no trace, else 0: float32, 0-dim, the fused optimisers' own
        ``found_inf``.

        ``norm``, the gradients' 2-norm, is looked at where it is given.
        """
        finite = torch.isfinite(sums[0])
        bad = ~(finite if norm is None else finite & torch.isfinite(norm))
        first = torch.where(bad & (self.first_bad < 0), self.step, self.first_bad)
        self.first_bad.copy_(first)
        self.num_bad.add_(bad.to(torch.int64))
        self.step.add_(1)
        left_out = bad if self.skip else first >= 0
        return left_out.to(torch.float32)

    def read(self) -> tuple[int | None, int]:
        """The host read: the first step that was not finite (or None), and how many there were."""
        _, first, count = torch.stack(self.tensors).tolist()
        return None if first < 0 else first, count


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm over all gradients, 0-dim: not finite where one of them isn't."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))


Reduce = Callable[[Sequence[Tensor], Tensor], None]
"""Changes gradients and sums in place, between backward and update: where an all-reduce goes."""

Apply = Callable[["Update", Sequence[Tensor], Sequence[Tensor], Tensor], None]
"""(update, parameters, their gradients, 1 where nothing may change) -> one step of its optimiser"""

KERNELS: dict[type, str] = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}
"""torch's own fused kernels, by private names; test_updates notices their loss."""


PLAIN: Mapping[str, Any] = {"fused": False, "foreach": False}
"""An optimiser's form that steps parameter by parameter, in torch's plain operations."""


class Update:
    """The step of any torch optimiser; one that is not finite leaves no trace."""

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
            group.setdefault(
                "initial_lr", group["lr"]
            )  # torch's own name for it, kept in its state_dict
        self.set_rate(1.0)

    def like(self, form: Mapping[str, Any], state: Any = None) -> Update:
        """The same by a copy of the optimiser in another form, such as `PLAIN`, which shares its
        state unless it has its own; nothing is reduced.
        """
        optim = copy(self.optim)
        optim.state = optim.state if state is None else state
        optim.param_groups = [{**group, **form} for group in optim.param_groups]
        return Update(optim, self.parameters, self.health, self.grad_clip)

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates that the optimiser was made with; ``rate`` is where a program
        reads it.
        """
        for group in self.optim.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.rate.fill_(self.optim.param_groups[0]["lr"])

    def __call__(
        self, sums: Tensor, gradients: Sequence[Tensor | None], apply: Apply | None = None
    ) -> None:
        """Change the parameters that have a gradient: by the optimiser's own ``step``, or by
        ``apply``.
        """
        with torch.no_grad():
            if self.reduce is not None:  # every process must reduce the same list
                filled = zip(self.parameters, gradients, strict=True)
                gradients = [torch.zeros_like(p) if g is None else g for p, g in filled]
                self.reduce([g for g in gradients if g is not None], sums)
            reached = [
                p
                for p, gradient in zip(self.parameters, gradients, strict=True)
                if gradient is not None
            ]
            given = [gradient for gradient in gradients if gradient is not None]
            watched = given and (self.health.skip or self.grad_clip is not None)
            norm = gradient_norm(given) if watched else None
            left_out = self.health.observe(sums, norm)
            if (
                norm is not None and self.grad_clip is not None
            ):  # as torch.nn.utils.clip_grad_norm_ does
                given = list(
                    torch._foreach_mul(given, torch.clamp(self.grad_clip / (norm + 1e-6), max=1.0))
                )
            if given:
                (apply or own_step)(self, reached, given, left_out)


def own_step(
    update: Update, parameters: Sequence[Tensor], gradients: Sequence[Tensor], left_out: Tensor
) -> None:
    """The optimiser's own ``step``."""
    optim: Any = update.optim
    optim.zero_grad()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if getattr(optim, "_step_supports_amp_scaling", False):
        optim.found_inf = left_out  # as torch.amp.GradScaler does
        optim.step()
        del optim.found_inf
    elif not left_out.item():  # no kernel of this optimiser leaves a step out by itself
        optim.step()


def has_hooks(optim: torch.optim.Optimizer) -> bool:
    """Whether something is called with its ``step``."""
    return bool(optim._optimizer_step_pre_hooks or optim._optimizer_step_post_hooks)


def is_plain_adam(optim: torch.optim.Optimizer) -> bool:
    """Adam or AdamW by its fused kernel, without AMSGrad: what the two forms below are written for.

    In one group, and without hooks on its ``step``, which is not called there.
    """
    (group, *others) = optim.param_groups
    plain = type(optim) in KERNELS and bool(group.get("fused")) and not has_hooks(optim)
    return (
        plain
        and not others
        and not any(group.get(o) for o in ("amsgrad", "maximize", "differentiable"))
    )


def make_state(optim: torch.optim.Optimizer) -> None:
    """The zeros that a fused Adam makes at its first step."""
    for parameter in optim.param_groups[0]["params"]:
        if not optim.state[parameter]:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {
                name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")
            }
            optim.state[parameter] = {"step": step, **moments}


def adam_state(
    optim: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> tuple[list[Tensor], ...]:
    """(steps, first moments, second moments) of Adam, one tensor a parameter each: the optimiser's
    own.
    """
    return tuple(
        [optim.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq")
    )


def fused_adam(
    update: Update, parameters: Sequence[Tensor], gradients: Sequence[Tensor], left_out: Tensor
) -> None:
    """Adam and AdamW by the kernel that their ``step`` calls, without the bookkeeping."""
    steps, means, squares = adam_state(update.optim, parameters)
    torch._foreach_add_(
        steps, [1 - left_out] * len(steps)
    )  # as a list: a lone tensor would be read by the host
    group = update.optim.param_groups[0]
    beta1, beta2 = group["betas"]
    fixed = {name: group[name] for name in ("weight_decay", "eps", "amsgrad", "maximize")}
    rate = (
        update.rate if left_out.device.type == "cpu" else update.rate.float()
    )  # as each kernel reads it
    kernel: Any = getattr(torch, KERNELS[type(update.optim)])
    kernel(
        parameters,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=rate,
        beta1=beta1,
        beta2=beta2,
        found_inf=left_out,
        **fixed,
    )


def written_adam(
    update: Update, parameters: Sequence[Tensor], gradients: Sequence[Tensor], left_out: Tensor
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1) or AdamW (Loshchilov & Hutter 2019, algorithm 2), in
    place.

    In operations that a compiler fuses with the gradients'; the learning rate and the step's
    number, which is one for all parameters, are tensors. Where ``left_out`` is 1 nothing changes.
    """
    group, rate, decoupled = (
        update.optim.param_groups[0],
        update.rate,
        type(update.optim) is torch.optim.AdamW,
    )
    (beta1, beta2), decay, eps = group["betas"], group["weight_decay"], group["eps"]
    steps, means, squares = adam_state(update.optim, parameters)
    for step in steps:
        step.add_(1 - left_out)
    kept = _once(1 - left_out) > 0
    number = steps[0].double()  # 1 − β^t loses its digits in float32
    sizes = _each(rate / (1 - beta1**number), parameters)
    inverse_roots = _each((1 - beta2**number).rsqrt(), parameters)
    shrinks = _each(1 - rate * decay, parameters)
    for parameter, gradient, mean, square in zip(
        parameters, gradients, means, squares, strict=True
    ):
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
    return {
        dtype: _once(number.to(dtype)) for dtype in {parameter.dtype for parameter in parameters}
    }


def _once(number: Tensor) -> Tensor:
    """The same number as a maximum, which a compiler computes once: what is pointwise it would
    compute at every element.
    """
    return number.expand(16).amax()
