"""Torch optimisers by name; Adam and AdamW by their fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pyro_vae import lookup, registry, specs
from pyro_vae.errors import UserError
from pyro_vae.nn.sparse_rows import hold_absent_rows
from pyro_vae.training.updates import KERNELS

OptimizerSpec = (
    str | type[torch.optim.Optimizer] | Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
)


def make_optimizer(
    spec: OptimizerSpec, parameters: Sequence[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """An optimiser of ``parameters``: a name, a call such as ``"Adam(eps=1e-4)"``, a class, or a
    function of the list.
    """
    if not isinstance(spec, str | type):
        given: Any = spec(parameters) if callable(spec) else spec
        if not isinstance(given, torch.optim.Optimizer):
            raise UserError(
                f"optimizer is a {type(spec).__name__}: expected a name such as 'Adam(eps=1e-4)', "
                "a torch.optim class, or a function of the parameter list that returns a torch "
                "optimiser"
            )
        _unfuse(given)
        hold_absent_rows(given)
        return given
    context: dict[str, Any] = {"params": list(parameters), "lr": learning_rate}
    kind = lookup.resolve("optimizer", specs.parse(spec).name) if isinstance(spec, str) else spec
    if kind in KERNELS and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
    ):
        context["fused"] = True  # the other optimisers step as torch's users have them by default
    optimizer: torch.optim.Optimizer = registry.build("optimizer", spec, **context)
    hold_absent_rows(optimizer)
    return optimizer


def _unfuse(optimizer: torch.optim.Optimizer) -> None:
    """The plain form of what is not Adam: torch's fused SGD breaks where a step does not reach a
    parameter.
    """
    if type(optimizer) not in KERNELS and any(
        group.get("fused") for group in optimizer.param_groups
    ):
        for group in optimizer.param_groups:
            group["fused"] = False
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
