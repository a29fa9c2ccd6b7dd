"""Which form of the training step is used, and one line that says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor

from pyro_vae import compiled_update
from pyro_vae.batches import Resident, Source
from pyro_vae.captured_update import CapturedUpdate
from pyro_vae.compiled_update import CompiledUpdate, make_state
from pyro_vae.freed_memory import keep_freed_memory
from pyro_vae.health import Health
from pyro_vae.staging import NotStageable, check_tier, missing_compiler
from pyro_vae.steps import EagerStep, StagedStep
from pyro_vae.updates import OptimizerUpdate, Reduce, Update, is_plain_adam

WORTH_COMPILING = 90.0
"""Estimated seconds of training from which inductor's compile time (about 15 s, cold) is worth a fifth of them."""
_SECONDS_PER_NODE, _FLOPS_PER_SECOND = 6e-6, 2e11


def make_update(
    eager: EagerStep,
    optim: torch.optim.Optimizer,
    health: Health,
    compile: str,
    total_steps: int,
    x: Tensor,
    fields: Mapping[str, Tensor],
    grad_clip: float | None = None,
    reduce: Reduce | None = None,
    source: Source | None = None,
) -> tuple[Update, str, str]:
    """The step in the tier asked for, or in the best one that the work is worth; the tier's name, and one line on why.

    An estimate decides, not a timing: the same training takes the same tier again, and so gives the same numbers. On CUDA
    a staged step on a resident ``source`` is captured besides.
    """
    keep_freed_memory()
    update, tier, note = _make_update(eager, optim, health, compile, total_steps, x, fields, grad_clip, reduce)
    if tier == "off" or reduce is not None or not capturable(source, optim):
        return update, tier, note
    make_state(optim)
    own = [tensor for state in optim.state.values() for tensor in state.values()]
    captured = CapturedUpdate(update, source, [*eager.loss.pair.tensors(), *own, *health.tensors])
    try:
        captured.prepare(next(source.rows(0, 0)))
    except NotStageable as reason:
        return update, tier, f"{note}; {reason}"
    return captured, tier, f"{note}, captured as one CUDA graph"


def capturable(source: Source | None, optim: torch.optim.Optimizer) -> TypeGuard[Resident]:
    """Images that lie on a CUDA device, and an optimiser whose numbers are all tensors."""
    return isinstance(source, Resident) and source.x.device.type == "cuda" and is_plain_adam(optim)


def _make_update(
    eager: EagerStep,
    optim: torch.optim.Optimizer,
    health: Health,
    compile: str,
    total_steps: int,
    x: Tensor,
    fields: Mapping[str, Tensor],
    grad_clip: float | None,
    reduce: Reduce | None,
) -> tuple[Update, str, str]:
    check_tier(compile)

    def beside(step: EagerStep) -> OptimizerUpdate:
        return OptimizerUpdate(step, optim, health, grad_clip, reduce)

    if not eager.loss.objective.stageable:
        return beside(eager), "off", f"eager Pyro ({type(eager.loss.objective).__name__} is Pyro's own objective)"
    if compile == "off":
        return beside(eager), "off", "eager Pyro, as asked for"
    try:
        replayed = StagedStep(eager, "graph")
        nodes = len(replayed.prepare(x, fields).graph.graph.nodes)
    except NotStageable as reason:
        return beside(eager), "off", f"eager Pyro ({reason})"
    flops = 6.0 * sum(p.numel() for p in eager.parameters) * len(x) * eager.loss.objective.num_particles
    seconds = total_steps * (_SECONDS_PER_NODE * nodes + flops / _FLOPS_PER_SECOND)
    why = f"about {seconds:.0f} s of work" if compile == "auto" else "as asked for"
    if compile == "graph" or (compile == "auto" and seconds <= WORTH_COMPILING):
        less = "" if compile == "graph" else ": less than compiling is worth"
        return beside(replayed), "graph", f"traced graph, replayed ({why}{less})"
    if missing := missing_compiler(x.device):
        return beside(replayed), "graph", f"traced graph, replayed ({missing})"
    try:
        update: Update
        if reduce is None and compiled_update.serves(optim, eager.parameters):
            update = CompiledUpdate(beside(replayed), replayed)
            update.prepare(x, fields)
        else:
            compiled = StagedStep(eager, "inductor")
            compiled.prepare(x, fields)
            update = beside(compiled)
        return update, "inductor", f"compiled by inductor, {update.form} ({why})"
    except NotStageable as reason:
        return beside(replayed), "graph", f"traced graph, replayed ({reason})"
