"""Selection of the training step's form (eager, graph, compiled), with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_vae.compile.trace import NotStageable, check_tier
from pyro_vae.data.batches import Batch, Resident, Source
from pyro_vae.errors import first_line
from pyro_vae.memory import keep_freed_memory
from pyro_vae.objectives import Loss
from pyro_vae.protocols import Part
from pyro_vae.training.train_step import StagedStep, TrainStep

TOGETHER = 20
"""Steps of one launch, so that the host is no bound of a small one."""

WARM_UPS = 3
"""Runs on a side stream before a graph is captured, as torch asks for."""


Found = TypeVar("Found")


class Rows(Resident):
    """A resident source whose shuffled batches are row numbers, for a step that gathers its images
    itself.
    """

    def __init__(self, source: Resident) -> None:
        vars(self).update(vars(source))

    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The rows of each batch in the place of its images."""
        return ((rows, {}) for rows in self.rows(seed, epoch, skip))

    def everything(self) -> Batch:
        """The numbers of all rows, in order."""
        return torch.arange(self.num_images, device=self.device), {}

    def images(self, batch: Batch) -> Batch:
        """The images of these rows."""
        return self.take(batch[0])


class CapturedStep(TrainStep):
    """Steps on batches of one size as CUDA graphs, of one step and of several: called with rows,
    they gather their images in the graph.

    The host copies the rows, the rates and the KL weights to where a graph reads them, and replays
    it. Noise goes on from replay to replay, as torch's generator is part of the capture.
    """

    def __init__(self, inner: StagedStep, rows: Rows) -> None:
        super().__init__(inner.loss, inner.parameters, inner.update, inner.observe)
        self.tier, self.inner, self.source = inner.tier, inner, rows
        self.together = max(1, min(TOGETHER, rows.num_images // rows.batch_size))
        first = next(rows.shuffled(0, 0))[0]
        schedules = torch.ones(self.together, 2, dtype=torch.float64, device=first.device)
        with self.undone():
            try:
                self._step = captured(lambda rows: inner(*self.source.images((rows, {}))), first)
                self._steps = captured(self._several, first.expand(self.together, -1), schedules)
            except Exception as error:
                raise NotStageable(f"no CUDA graph ({first_line(error)})") from error
        self._shape = first.shape

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One replay; rows of another size take the inner step."""
        if x.shape != self._shape:
            return self.inner(*self.source.images((x, {})))
        return self._step(x)

    def run(self, batches: Sequence[Batch], schedules: Sequence[tuple[float, float]]) -> Tensor:
        """One replay for as many full batches as there are in its graph."""
        rows = [x for x, _ in batches if x.shape == self._shape]
        if not 1 < self.together == len(rows):
            return super().run(batches, schedules)
        self.update.set_rate(schedules[-1][0])
        return self._steps(torch.stack(rows), torch.tensor(schedules, dtype=torch.float64))

    def _several(self, rows: Tensor, schedules: Tensor) -> Tensor:
        total: Any = 0.0
        initial = self.update.optim.param_groups[0]["initial_lr"]
        for own, (rate, weight) in zip(rows, schedules, strict=True):
            self.update.rate.copy_(initial * rate)
            self.loss.kl_weight.copy_(weight)
            total = total + self.inner(*self.source.images((own, {})))
        return total

    def check(self, *batches: Batch) -> None:
        """Of the step that was captured."""
        self.inner.check(*batches)


def captured(function: Callable[..., Found], *arguments: Tensor) -> Callable[..., Found]:
    """The function of tensors of these shapes as one graph, into which the tensors are copied; each
    call writes over the results of the last one.
    """
    given = [argument.contiguous().clone() for argument in arguments]
    replay: Callable[[], Found] = CAPTURES[given[0].device.type](
        lambda: function(*given), given[0].device
    )

    def run(*arguments: Tensor) -> Found:
        for place, argument in zip(given, arguments, strict=True):
            place.copy_(argument, non_blocking=True)
        return replay()

    return run


def capture_on_cuda(step: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Warm up on a side stream, then capture; the function that is given replays.

    Streams and graphs belong to the current device, so that ``device`` is made the current one: a
    capture elsewhere would be empty, and its replay a training that changes nothing. A capture that
    fails is reset, and a number is drawn, which raises where the generator is still capturing.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:  # calls of other threads (a data loader's) don't end this capture
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = step()
        except Exception:
            graph.reset()
            torch.rand((), device=device)
            raise

    def replay() -> Any:
        with torch.cuda.device(device):
            graph.replay()
        return output

    return replay


CAPTURES = {"cuda": capture_on_cuda}
"""By the kind of device: (step, device) -> a function that does the step again, with no word from
the host.
"""


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
    why = f"about {seconds:.0f} s of training" if compile == "auto" else "as asked for"
    note = f"traced graph, replayed ({why})"
    if compile == "auto" and seconds <= WORTH_COMPILING:
        note = f"traced graph, replayed ({why}: too short for compiling to pay)"
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
    return _captured(step, source, note)


def _captured(step: StagedStep, source: Source, note: str) -> tuple[TrainStep, Source, str]:
    """The step as a CUDA graph, where it can be one."""
    if not (step.adam and isinstance(source, Resident) and source.kept_on is None):
        return step, source, note
    if source.device.type not in CAPTURES:
        return step, source, note
    if step.host_reads:
        return step, source, f"{note}; no CUDA graph (the host reads in {step.host_reads[0]})"
    try:  # all of the optimiser's numbers are tensors
        rows = Rows(source)
        captured_step = CapturedStep(step, rows)
        said = f"captured as a CUDA graph, {captured_step.together} steps a launch"
        return captured_step, rows, f"{note}, {said}"
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
