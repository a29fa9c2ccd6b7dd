"""Optimisers by name; Adam and AdamW use torch's fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from pyro_vae.choices import lookup, registry, specs
from pyro_vae.compile import cache
from pyro_vae.errors import UserError
from pyro_vae.nn.sparse_rows import hold_absent_rows
from pyro_vae.training.updates import KERNELS

OptimizerSpec: TypeAlias = (
    str
    | type[torch.optim.Optimizer]
    | Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    | PyroOptim
)


def make_optimizer(
    spec: OptimizerSpec,
    parameters: Sequence[nn.Parameter],
    learning_rate: float,
    name_of: Callable[[Tensor], tuple[str, str]] = lambda parameter: ("", ""),
) -> torch.optim.Optimizer:
    """An optimiser of ``parameters``: a name, a call such as ``"Adam(eps=1e-4)"``, a class, a
    function of the list, or one of Pyro's.

    Args:
        name_of: a parameter -> its program and its name, which Pyro's own may ask for.
    """
    cache.ensure()
    if isinstance(spec, PyroOptim):
        return _of_pyro(spec, parameters, name_of)
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


def _of_pyro(
    spec: PyroOptim, parameters: Sequence[nn.Parameter], name_of: Callable[[Tensor], Any]
) -> torch.optim.Optimizer:
    """Pyro's optimiser as one of torch's: its class, and a group for each set of arguments.

    The gradient is that of the mean loss of an image, as it is for any other optimiser here, where
    `pyro.infer.SVI` has that of the sum.
    """
    kind, arguments = spec.pt_optim_constructor, spec.pt_optim_args
    if isinstance(spec, PyroLRScheduler):
        raise UserError(
            "optimizer is a scheduler of Pyro: give its optimiser, and the learning rate's "
            "schedule as schedule='linear' or a Schedule"
        )
    if spec.pt_clip_args:
        raise UserError(
            "optimizer has clip_args, which clip the gradient of each parameter: leave them "
            "out, and give grad_clip=, the largest norm of all gradients together"
        )
    if callable(arguments) and spec.pt_optim_args_argc != 1:
        raise UserError(
            "optimizer is a function of a module's name and a parameter's name (Pyro's old "
            "form): give a function of one name, such as 'encoder.fc.weight'"
        )
    groups: dict[str, dict[str, Any]] = {}
    for parameter in parameters:
        own = (
            arguments(normalize_param_name(name_of(parameter)[1]))
            if callable(arguments)
            else arguments
        )
        if own.get("lrd", 1.0) != 1.0:
            raise UserError(
                f"lrd={own['lrd']} lowers the learning rate at each step: leave it out, and "
                "give schedule='linear', 'cosine' or a Schedule"
            )
        groups.setdefault(repr(sorted(own.items())), {"params": [], **own})["params"].append(
            parameter
        )
    optimizer: torch.optim.Optimizer = kind(list(groups.values()))
    if not all("lr" in group for group in optimizer.param_groups):
        raise UserError(
            f"optimizer {type(optimizer).__name__} has no learning rate 'lr', which schedule= "
            "changes: give an optimiser that has one, such as pyro.optim.Adam"
        )
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
