"""One training step, gradients and optimiser: the optimiser's own step, or its fused kernel called on lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.batches import Batch, Source
from pyro_vae.health import Health, gradient_norm
from pyro_vae.row_tables import tables_of
from pyro_vae.steps import Step

Reduce = Callable[[Sequence[Tensor], Tensor], None]
"""Changes gradients and sums in place, between backward and update: where an all-reduce goes."""


class Update(ABC):
    """Called on a batch with the factor of the learning rate: leaves new parameters, returns the three sums, unread."""

    form: str
    optim: torch.optim.Optimizer
    health: Health

    @abstractmethod
    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """(loss, reconstruction, KL) summed over the batch, ``(3,)`` float64."""

    def batches(self, source: Source, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """A shuffled pass over the source, in the form that this update is called on."""
        return source.shuffled(seed, epoch, skip)

    def images(self, x: Tensor, fields: Mapping[str, Tensor]) -> Batch:
        """The images and fields of one of those batches."""
        return x, dict(fields)

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates that the optimiser was made with."""
        for group, rate in zip(self.optim.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def __init__(self, optim: torch.optim.Optimizer, health: Health) -> None:
        self.optim, self.health = optim, health
        for group in optim.param_groups:
            group.setdefault("initial_lr", group["lr"])  # torch's own name for it, kept in the optimiser's state_dict
        self._base_rates = [group["initial_lr"] for group in optim.param_groups]


class OptimizerUpdate(Update):
    """Gradients by any `Step`, then clipping, then any torch optimiser; a step that is not finite leaves no trace."""

    form = "optimiser beside the graph"

    def __init__(
        self,
        gradients: Step,
        optim: torch.optim.Optimizer,
        health: Health,
        grad_clip: float | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(optim, health)
        self.gradients, self.grad_clip, self.reduce = gradients, grad_clip, reduce
        self._fused: Callable[[Sequence[Tensor], Tensor], None] | None = None
        # a captured graph would hold on to a number
        self.rate = torch.tensor(0.0, device=health.step.device) if health.step.device.type == "cuda" else None

    def set_rate(self, factor: float) -> None:
        """Where the fused kernel reads it."""
        super().set_rate(factor)
        if self.rate is not None:
            self.rate.fill_(self.optim.param_groups[0]["lr"])

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One step."""
        sums = self.gradients(x, fields)
        with torch.no_grad():
            gradients = [_gradient(parameter) for parameter in self.gradients.parameters]
            if self.reduce is not None:
                gradients = [_writable(parameter) for parameter in self.gradients.parameters]
                self.reduce(gradients, sums)
            norm = gradient_norm(gradients) if self.health.skip or self.grad_clip is not None else None
            left_out = self.health.observe(sums, norm)
            if norm is not None and self.grad_clip is not None:
                torch._foreach_mul_(gradients, clip_factor(norm, self.grad_clip))
            self._apply(gradients, left_out)
        return sums

    def _apply(self, gradients: Sequence[Tensor], left_out: Tensor) -> None:
        if self._fused is not None:
            self._fused(gradients, left_out)
        elif getattr(self.optim, "_step_supports_amp_scaling", False):
            self.optim.found_inf = left_out  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
            self.optim.step()
            del self.optim.found_inf  # type: ignore[attr-defined]
            self._fused = fused_adam(self.optim, self.gradients.parameters, self.rate)
        elif not left_out.item():  # no kernel of this optimiser leaves a step out by itself
            self.optim.step()


def clip_factor(norm: Tensor, most: float) -> Tensor:
    """What gradients of this norm are multiplied by, as ``torch.nn.utils.clip_grad_norm_`` does."""
    return torch.clamp(most / (norm + 1e-6), max=1.0)


KERNELS: dict[type, str] = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}


def is_plain_adam(optim: torch.optim.Optimizer) -> bool:
    """Adam or AdamW with one group, without AMSGrad, and with the fused kernel: what the quick forms are written for."""
    (group, *others) = optim.param_groups
    plain = type(optim) in KERNELS and bool(group.get("fused")) and not tables_of(optim)
    return plain and not others and not any(group.get(o) for o in ("amsgrad", "maximize", "differentiable"))


def adam_state(optim: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """(steps, first moments, second moments) of Adam, one tensor a parameter each: the optimiser's own."""
    return tuple([optim.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq"))


def fused_adam(
    optim: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: Tensor | None = None
) -> Callable[[Sequence[Tensor], Tensor], None] | None:
    """``optim.step()`` of a plain Adam without its bookkeeping: the same kernel on the same tensors; else None.

    The learning rate is read from ``rate`` where that is given, else from the optimiser's group.
    """
    kernel: Any = getattr(torch, KERNELS.get(type(optim), ""), None)  # a private name of torch's
    if kernel is None or not is_plain_adam(optim):
        return None
    group = optim.param_groups[0]
    steps, means, squares = adam_state(optim, parameters)
    beta1, beta2 = group["betas"]
    fixed: dict[str, Any] = {
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "amsgrad": False,
        "maximize": False,
    }
    values = list(parameters)

    def step(gradients: Sequence[Tensor], left_out: Tensor) -> None:
        torch._foreach_add_(steps, [1 - left_out] * len(steps))  # as a list: a lone tensor would be read by the host
        lr = group["lr"] if rate is None else rate
        kernel(values, list(gradients), means, squares, [], steps, lr=lr, found_inf=left_out, **fixed)

    return step


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _writable(parameter: nn.Parameter) -> Tensor:
    """The gradient in memory of its own, where it is one number that was expanded."""
    gradient = _gradient(parameter)
    if gradient.stride() != parameter.stride():
        parameter.grad = gradient = torch.empty_like(gradient, memory_format=torch.contiguous_format).copy_(gradient)
    return gradient
