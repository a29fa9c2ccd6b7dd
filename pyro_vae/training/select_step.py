"""Selection of the training step's form (eager, graph, compiled), with the reason."""

from __future__ import annotations

from torch import nn

from pyro_vae.compile.trace import NotStageable, check_tier
from pyro_vae.data.loaders import Resident, Source
from pyro_vae.memory import keep_freed_memory
from pyro_vae.objectives import Loss
from pyro_vae.protocols import Part
from pyro_vae.training.cuda_graph import CapturedStep, Rows
from pyro_vae.training.train_step import StagedStep, TrainStep

WORTH_COMPILING = 90.0
"""Estimated seconds of training from which inductor's compile time (about 15 s, cold) is worth a
fifth of them.
"""
_SPEEDS = {"cpu": (6e-6, 2e11), "cuda": (2e-6, 2e13)}
"""Seconds for an operation, and operations on numbers a second. CUDA's are reckoned, and were not
measured.
"""

PURE = ("torch.nn.", "pyro.", "zuko.", "pyro_vae.")
"""Packages in whose modules Python decides nothing between steps."""


def select_step(
    eager: TrainStep, compile: str, total_steps: int, source: Source, seed: int = 0
) -> tuple[TrainStep, Source, str]:
    """The step in the tier asked for, or in the best one that the work is worth; where its batches
    come from; why.

    An estimate decides, not a timing: the same training takes the same tier again, and so gives the
    same numbers.
    """
    check_tier(compile)
    keep_freed_memory()
    objective = eager.loss.objective
    if not objective.stageable:
        return eager, source, f"eager Pyro: {objective!r} runs as it is"
    if compile == "off":
        return eager, source, "eager Pyro, as asked for"
    if compile == "auto" and (what := foreign(eager.loss)):
        note = (
            f"eager Pyro, because {what} is not a part of this package. compile='graph' or "
            "'inductor' traces the programs once, which is several times quicker for small "
            "networks; their Python code must not make decisions that change (docs/tracing.md)"
        )
        return eager, source, note
    if any(map(hooked, eager.parameters)):
        return eager, source, "eager Pyro (a parameter has a hook on its gradient)"
    batches = next(source.shuffled(seed, 1)), source.drawn(seed)
    try:
        step = StagedStep(eager, "graph")
        step.prepare(*batches)
    except NotStageable as reason:
        return eager, source, f"eager Pyro ({reason})"
    flops = (
        6.0
        * sum(p.numel() for p in eager.parameters)
        * len(batches[0][0])
        * objective.num_particles
    )
    per_node, per_second = _SPEEDS.get(batches[0][0].device.type, _SPEEDS["cpu"])
    seconds = total_steps * (per_node * step.num_nodes + flops / per_second)
    why = f"about {seconds:.0f} s of work" if compile == "auto" else "as asked for"
    note = f"traced graph, replayed ({why})"
    if compile == "auto" and seconds <= WORTH_COMPILING:
        note = f"traced graph, replayed ({why}: less than compiling is worth)"
    elif compile != "graph":
        try:
            compiled = StagedStep(eager, "inductor")
            compiled.prepare(*batches)
            form = (
                "optimiser inside the graph" if compiled.inside else ("optimiser outside the graph")
            )
            step, note = compiled, f"compiled by inductor, {form} ({why})"
        except NotStageable as reason:
            note = f"traced graph, replayed ({reason})"
    if not (step.adam and isinstance(source, Resident) and source.x.device.type == "cuda"):
        return step, source, note
    if step.host_reads:
        return step, source, f"{note}; no CUDA graph (the host reads in {step.host_reads[0]})"
    try:  # all of the optimiser's numbers are tensors
        rows = Rows(source)
        return CapturedStep(step, rows), rows, f"{note}, captured as one CUDA graph"
    except NotStageable as reason:
        return step, source, f"{note}; {reason}"


def hooked(parameter: nn.Parameter) -> bool:
    """Whether a hook runs where this parameter's gradient is made."""
    return bool(
        getattr(parameter, "_post_accumulate_grad_hooks", None) or parameter._backward_hooks
    )


def foreign(loss: Loss) -> str:
    """The first program or module of a pair in which Python may decide something between steps, or
    nothing.

    A class of one's own says ``pure = True`` where its Python reads nothing that changes.
    """
    pair = loss.pair
    for program in (pair.model, pair.guide):
        if not isinstance(program.call, nn.Module):
            return f"the {program.role}"
    for module in pair.modules:
        kind = type(module)
        known = kind.__module__.startswith(PURE) or vars(kind).get("pure", Part.pure)
        if (
            not known
            or "forward" in vars(module)
            or module._forward_hooks
            or module._forward_pre_hooks
        ):
            return kind.__name__
    return ""
