"""Pyro's own ELBO classes as objectives: Pyro's code gives the loss and the gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakSet

import pyro
import torch
from pyro import infer, poutine
from pyro.infer import ELBO
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.errors import UserError, first_line
from pyro_vae.objectives.base import Estimate, Objective, Scaled, reconstruction, sampled_kl
from pyro_vae.objectives.elbo import Trace_ELBO
from pyro_vae.pair.module_state import statistics_kept
from pyro_vae.pair.nodes import Fields, log_prob_of, masked, plain_draw, sample_nodes
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import NO_CLOSED_FORM, Structure
from pyro_vae.pair.terms import SiteTerms

_JIT = "it traces by torch.jit, which is deprecated: use the class of that name without Jit"
_REFUSED: Mapping[type, str] = {
    infer.JitTrace_ELBO: _JIT,
    infer.JitTraceMeanField_ELBO: _JIT,
    infer.JitTraceEnum_ELBO: _JIT,
    infer.JitTraceGraph_ELBO: _JIT,
    infer.ReweightedWakeSleep: "it has two losses, one for each program: "
    "use objective='IWAE(5)', or pyro.infer.SVI",
    infer.TraceTailAdaptive_ELBO: "it has gradients but no loss: "
    "use objective='RenyiELBO(alpha=0.5)', or pyro.infer.SVI",
    infer.Trace_MMD: "it is not a bound of log p(x): use objective='Trace_ELBO', or pyro.infer.SVI",
}
"""Pyro's classes that are not served, and why."""


def adopt(part: Any) -> Objective | type:
    """An objective, or a class of them, as it is; one of Pyro's own ELBOs as a `PyroELBO`; a
    ``UserError`` for all else.
    """
    if isinstance(part, Objective) or (isinstance(part, type) and issubclass(part, Objective)):
        return part
    if isinstance(part, ELBO):
        return PyroELBO(part)
    if isinstance(part, type) and issubclass(part, ELBO):
        raise UserError(
            f"objective is the class {part.__name__}, not an instance of it: write "
            f"{part.__name__}()"
        )
    what = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
    raise UserError(
        f"objective is {what}: expected a name such as 'TraceMeanField_ELBO' or 'IWAE(5)', one of "
        "pyro_vae.objectives, or one of Pyro's, such as pyro.infer.Trace_ELBO()"
    )


@dataclass(frozen=True, repr=False)
class PyroELBO(Objective):
    """One of Pyro's own objectives, ``elbo``, run eagerly by Pyro's own code.

    The loss and its gradient are Pyro's: ``differentiable_loss``, or what ``loss_and_grads`` calls
    ``backward`` on. The KL weight is a scale of the latent sites in both programs.
    ``reconstruction`` and ``kl`` are those of the sites' log densities in the very same runs; where
    sites are enumerated, those of one more run, which draws them.
    """

    counts: ClassVar[tuple[str, ...]] = ()
    stageable: ClassVar[bool] = False

    elbo: ELBO
    _met: WeakSet[Pair] = field(
        default_factory=WeakSet, init=False, compare=False
    )  # pairs that Pyro has checked

    def __post_init__(self) -> None:
        for refused, why in _REFUSED.items():
            if isinstance(self.elbo, refused):
                raise UserError(f"{self!r} can't be used here, because {why}")

    @property
    def num_particles(self) -> int:
        """Draws of z an image."""
        return int(self.elbo.num_particles)

    def __repr__(self) -> str:
        kind, said = type(self.elbo), []
        for name, parameter in inspect.signature(kind).parameters.items():
            value = getattr(self.elbo, name, parameter.default)
            if (
                name != "max_plate_nesting" and value != parameter.default
            ):  # Pyro guesses that one as it runs
                said.append(f"{name}={value!r}")
        place = "pyro.infer." if getattr(infer, kind.__name__, None) is kind else ""
        return f"{place}{kind.__qualname__}({', '.join(said)})"

    def suited(self, structure: Structure) -> Objective:
        """Itself, for every pair."""
        return self

    def run(self, pair: Pair, x: Tensor, fields: Fields, kl_weight: Tensor) -> Estimate:
        """Pyro's loss of one batch, and the figures of its traces."""
        structure = pair.structure(x, fields, scored=False)
        weight = Scaled(dict.fromkeys(structure.latents, kl_weight))
        traces: tuple[list[poutine.Trace], ...] = [], []
        programs = _marked(pair.model, structure.summed), pair.guide
        model, guide = (
            _recorded(each, x, fields, weight, kept)
            for each, kept in zip(programs, traces, strict=True)
        )
        with self._checking(pair):
            loss = stock_loss(self.elbo, model, guide)
        loss = torch.as_tensor(
            loss, dtype=None if isinstance(loss, Tensor) else pair.dtype, device=x.device
        )
        at_once = getattr(self.elbo, "vectorize_particles", False)
        runs = (
            -1 if at_once else -self.num_particles
        )  # before these Pyro may have run the pair to guess its plates
        models, guides = (each[runs:] for each in traces)
        scale = max(_subsampled(site, len(x))[0] for site in models[-1].nodes.values())
        sites = [site for trace in (*models, *guides) for site in trace.nodes.values()]
        if any(site["type"] == "sample" and site["infer"].get("enumerate") for site in sites):
            return Estimate(loss, *_one_more_run(pair, structure, x, fields), scale)
        draws = len(models) * (self.num_particles if at_once else 1)
        observed, kl = _figures(models, guides, len(x))
        observed, kl = (torch.as_tensor(total / draws, device=x.device) for total in (observed, kl))
        return Estimate(loss, observed, kl, scale)

    @contextmanager
    def _checking(self, pair: Pair) -> Iterator[None]:
        """What Pyro raises is one sentence; in the first run of a pair its own checks of it are
        on.
        """
        try:
            with pyro.settings.context(validate_infer=pair not in self._met):
                yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self!r} can't train this pair: {first_line(error)}") from error
        self._met.add(pair)

    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """The ELBO of terms that are there already: what a search for a site that is not finite
        ends with.
        """
        return Trace_ELBO(self.num_particles).estimate(terms, structure, kl_weight)


def counterpart(objective: Objective, structure: Structure) -> PyroELBO:
    """Pyro's own objective of the same loss.

    Raises:
        UserError: there is none.
    """
    name, kind = type(objective).__name__, objective.stock
    if kind is None:
        raise UserError(
            f"{name} can't train this pair ({structure.by_pyro}): use objective='Trace_ELBO', "
            "which Pyro's own code then trains"
        )
    if structure.summed or (structure.enumerated and objective.enumerates):
        nesting, number = -structure.geometry.particle_dim - 1, objective.num_particles
        return PyroELBO(infer.TraceEnum_ELBO(max_plate_nesting=nesting, num_particles=number))
    # where the guide samples in another order than the model, Pyro's closed forms are wrong
    if kind is infer.TraceMeanField_ELBO and set(structure.sampled.values()) - {NO_CLOSED_FORM}:
        kind = infer.Trace_ELBO
    return PyroELBO(kind(num_particles=objective.num_particles))


def _recorded(
    program: Any, x: Tensor, fields: Fields, weight: Messenger, traces: list[poutine.Trace]
) -> Callable[[], Any]:
    """A program on one batch, as Pyro's ELBOs call it; each of its runs leaves a trace."""

    def run() -> Any:
        with weight, poutine.trace() as tracer:
            result = program(x, fields)
        traces.append(tracer.trace)
        return result

    return run


def stock_loss(elbo: Any, model: Callable[[], Any], guide: Callable[[], Any]) -> Any:
    """Pyro's loss; with Pyro's gradient where gradients are on."""
    if not torch.is_grad_enabled():
        return elbo.loss(model, guide)
    if hasattr(elbo, "differentiable_loss"):
        return elbo.differentiable_loss(model, guide)
    with _Kept() as kept:
        value = elbo.loss_and_grads(model, guide)
    surrogate: Any = sum(kept.differentiated)
    return value + (surrogate - surrogate.detach()) if kept.differentiated else value


class _Kept(TorchFunctionMode):
    """Inside, ``backward`` keeps its tensor and does nothing: the surrogate of a class that has
    only ``loss_and_grads``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differentiated: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.differentiated.append(args[0])
            return None
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _figures(
    models: list[poutine.Trace], guides: list[poutine.Trace], batch_size: int
) -> tuple[Any, Any]:
    """(reconstruction, KL): Σ of the log densities, masked and unscaled, of the sites that are
    observed, and of those that are drawn; where a plate takes some of its batch, they count for
    all of it.
    """

    def total(traces: list[poutine.Trace], observed: bool) -> Any:
        nodes = [node for trace in traces for _, node in sample_nodes(trace)]
        return sum(
            _subsampled(node, batch_size)[1]
            * masked(detach_provenance(log_prob_of(node)), node["mask"]).sum()
            for node in nodes
            if node["is_observed"] == observed
        )

    return total(models, True), total(guides, False) - total(models, False)


def _subsampled(site: Any, batch_size: int) -> tuple[float, float]:
    """Full size over size of a site's plates that subsample: that of the batch, and those that take
    some of it.
    """
    scales = [1.0, 1.0]
    for frame in site.get("cond_indep_stack", ()):
        if frame.full_size not in (None, frame.size):
            scales[frame.size != batch_size] *= frame.full_size / frame.size
    return scales[0], scales[1]


@torch.no_grad()
def _one_more_run(
    pair: Pair, structure: Structure, x: Tensor, fields: Fields
) -> tuple[Tensor, Tensor]:
    """(reconstruction, KL) of one draw an image; running statistics are left as they are, and so is
    the noise of the next step.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with statistics_kept(), torch.random.fork_rng(devices):
        if not structure.unscored:
            terms = pair.run(x, fields)
            return reconstruction(terms), sampled_kl(terms)
        guide = plain_draw(pair.guide, x, fields)
        model = plain_draw(poutine.replay(pair.model, trace=guide), x, fields)
    observed, latent = _figures([model], [guide], len(x))
    return torch.as_tensor(observed), torch.as_tensor(latent)


def _marked(model: Program, summed: Collection[str]) -> Any:
    """The model, with the sites that the guide does not have asked to be enumerated."""

    def parallel(site: Any) -> dict[str, str]:
        return {"enumerate": "parallel"} if site["name"] in summed else {}

    return poutine.infer_config(model, parallel) if summed else model
