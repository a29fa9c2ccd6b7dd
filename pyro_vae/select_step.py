"""Which form of the training step is used, and one line that says why."""

from __future__ import annotations

from torch import nn

from pyro_vae.batches import Resident, Source
from pyro_vae.cuda_graph import CapturedStep, Rows
from pyro_vae.freed_memory import keep_freed_memory
from pyro_vae.gradients import Gradients, TracedGradients
from pyro_vae.objectives import Loss
from pyro_vae.staging import NotStageable, check_tier, missing_compiler
from pyro_vae.train_step import CompiledStep, TrainStep
from pyro_vae.updates import AdamUpdate, Update, is_plain_adam

WORTH_COMPILING = 90.0
"""Estimated seconds of training from which inductor's compile time (about 15 s, cold) is worth a fifth of them."""
_SECONDS_PER_NODE, _FLOPS_PER_SECOND = 6e-6, 2e11

MOST_PARAMETERS = 1_000_000
"""Above it the optimiser's kernel beside the graph is quicker than inside (benchmarks/training_step.py: conv, digits)."""

PURE = ("torch.nn.", "pyro.", "zuko.", "pyro_vae.")
"""Packages in whose modules Python decides nothing between steps."""


def select_step(
    eager: Gradients, update: Update, compile: str, total_steps: int, source: Source, seed: int = 0
) -> tuple[TrainStep, Source, str]:
    """The step in the tier asked for, or in the best one that the work is worth; where its batches come from; why.

    An estimate decides, not a timing: the same training takes the same tier again, and so gives the same numbers.
    """
    check_tier(compile)
    keep_freed_memory()
    if not eager.loss.objective.stageable:
        return TrainStep(eager, update), source, f"eager Pyro: {eager.loss.objective!r} runs as it is"
    if compile == "off":
        return TrainStep(eager, update), source, "eager Pyro, as asked for"
    if compile == "auto" and (what := foreign(eager.loss)):
        return (
            TrainStep(eager, update),
            source,
            (
                f"eager Pyro, as {what} is not a part of this package; compile='graph' or 'inductor' traces the programs once, "
                "which is several times quicker for small networks, if Python decides nothing in them (docs/tracing.md)"
            ),
        )
    batch, others = next(source.shuffled(seed, 1)), source.drawn(seed)
    try:
        if any(map(hooked, eager.parameters)):
            raise NotStageable("a parameter has a hook on its gradient")
        if is_plain_adam(update.optim):
            update = AdamUpdate(update.optim, update.parameters, update.health, update.grad_clip, update.reduce)
        replayed = TracedGradients(eager, "graph")
        replayed.prepare(*batch)
        step = TrainStep(replayed, update)
        step.check([batch, others])
    except NotStageable as reason:
        return TrainStep(eager, update), source, f"eager Pyro ({reason})"
    flops = 6.0 * sum(p.numel() for p in eager.parameters) * len(batch[0]) * eager.loss.objective.num_particles
    seconds = total_steps * (_SECONDS_PER_NODE * replayed.num_nodes + flops / _FLOPS_PER_SECOND)
    why = f"about {seconds:.0f} s of work" if compile == "auto" else "as asked for"
    note = f"traced graph, replayed ({why})"
    if compile == "auto" and seconds <= WORTH_COMPILING:
        note = f"traced graph, replayed ({why}: less than compiling is worth)"
    elif compile != "graph":
        try:
            if missing := missing_compiler(batch[0].device):
                raise NotStageable(missing)
            if _fits_inside(update):
                assert isinstance(update, AdamUpdate)
                replayed.tier = "inductor"
                compiled: TrainStep = CompiledStep(replayed, update, *batch)
                form = "optimiser inside the graph"
            else:
                gradients = TracedGradients(eager, "inductor")
                gradients.prepare(*batch)
                compiled, form = TrainStep(gradients, update), "optimiser beside the graph"
            compiled.check([batch, others])
            step, note = compiled, f"compiled by inductor, {form} ({why})"
        except NotStageable as reason:
            replayed.tier, note = "graph", f"traced graph, replayed ({reason})"
    return _captured(step, source, note)


def hooked(parameter: nn.Parameter) -> bool:
    """Whether a hook runs where this parameter's gradient is made."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None) or parameter._backward_hooks)


def _captured(step: TrainStep, source: Source, note: str) -> tuple[TrainStep, Source, str]:
    """The step as one CUDA graph where the images are on such a device and all of the optimiser's numbers are tensors."""
    update = step.update
    capturable = isinstance(update, AdamUpdate) and update.reduce is None
    if not (capturable and isinstance(source, Resident) and source.x.device.type == "cuda"):
        return step, source, note
    own = [t for p in update.parameters for t in update.optim.state[p].values()]
    rows = Rows(source)
    try:
        captured = CapturedStep(step, rows, [*step.gradients.loss.pair.tensors(), *own, *update.health.tensors])
    except NotStageable as reason:
        return step, source, f"{note}; {reason}"
    return captured, rows, f"{note}, captured as one CUDA graph"


def _fits_inside(update: Update) -> bool:
    """Whether Adam pays inside the compiled graph, which has one number of steps for all parameters."""
    if not isinstance(update, AdamUpdate) or update.reduce is not None:
        return False
    steps = {float(update.optim.state[p]["step"]) for p in update.parameters}
    return len(steps) == 1 and sum(p.numel() for p in update.parameters) <= MOST_PARAMETERS


def foreign(loss: Loss) -> str:
    """The first program or module of a pair in which Python may decide something between steps, or nothing.

    A class of one's own says ``pure = True`` where its Python reads nothing that changes.
    """
    pair = loss.pair
    for program in (pair.model, pair.guide):
        if not isinstance(program.call, nn.Module):
            return f"the {program.role}"
    for module in pair.modules:
        kind = type(module)
        known = kind.__module__.startswith(PURE) or kind.__dict__.get("pure", False)
        if not known or "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return kind.__name__
    return ""
