"""Search for the step and the site at which a training diverged (became NaN or infinite)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.data.batches import Batch
from pyro_vae.objectives import Loss
from pyro_vae.pair.nodes import innermost
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.terms import Site

if TYPE_CHECKING:
    from pyro_vae.training.loop import Loop
    from pyro_vae.training.state import TrainingState


class Diverged(RuntimeError):
    """The loss, a gradient or a parameter became NaN or infinite. `fit` raises it.

    Model and guide are as they were before that step.

    Args:
        message: the sentence.
        step: the step, counted from 1; None where it could not be found.
        learning_rate: that of the step.
        site: the site or gradient that is not finite first, in words.
        state: the `TrainingState` before that step, for ``fit(…, resume=state)``.
    """

    def __init__(
        self,
        message: str,
        step: int | None = None,
        learning_rate: float = 0.0,
        site: str = "",
        state: Any = None,
    ) -> None:
        super().__init__(message)
        self.step, self.learning_rate, self.site = step, learning_rate, site
        self.state: TrainingState | None = state


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest absolute value in the tensors, 0-dim float64 and unread: NaN or infinite where
    any value is.
    """
    values = [t.detach().abs().amax().double() for t in tensors if t.numel()]
    return torch.stack(values).max()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value is finite: one host read."""
    return bool(torch.isfinite(largest(tensors)))


def find_step(loop: Loop, reached: int) -> tuple[str, int, str] | None:
    """Repeat the loop's steps one by one up to ``reached``: what is not finite, at which step, at
    which site; or None.

    The loop is then at the state before that step.
    """
    with loop.loss.pair.active(training=True):
        while loop.at.step < reached:
            before = loop.taken().copy()
            for [batch] in loop.steps(loop.stepper.step.run):
                (first_bad, _), step = loop.stepper.health.read(), loop.at.step
                if first_bad is not None or not all_finite(loop.stepper.parameters):
                    what = f"a gradient or parameter is not finite in epoch {before.position.epoch}"
                    loss = float((loop.at.sums - before.position.sums)[0]) / (
                        loop.at.seen - before.position.seen
                    )
                    if not isfinite(loss):
                        what = f"the loss is {loss} in epoch {before.position.epoch}"
                    loop.restore(before)
                    site = next(filter(None, loop.group.gather(_site(loop, batch))), "")
                    loop.restore(before)
                    return what, step, site
                if step >= reached:
                    return None
                before = loop.taken().copy()
            loop.at.begin_epoch(loop.at.epoch + 1)
    return None


def _site(loop: Loop, batch: Batch) -> str:
    try:
        x, named = loop.stepper.source.images(batch)
        observe = loop.stepper.observe
        seen = loop.loss.pair.cast(x if observe is None else observe(x))
        return find_site(loop.loss, loop.stepper.parameters, seen, named)
    except (
        Exception
    ):  # the search is a service: a program that breaks on NaN must not hide the divergence
        return ""


def find_site(
    loss: Loss, parameters: Sequence[Tensor], x: Tensor, fields: Mapping[str, Tensor]
) -> str:
    """Where the loss of this batch, run once eagerly, stops being finite: a site, or a parameter's
    gradient; "" if nowhere.

    In the order of the run: the guide's sites, then the model's, then the gradient of each site's
    log density.
    """
    pair = loss.pair
    with torch.enable_grad():
        structure = pair.structure(x, fields)
        terms = loss.objective.terms(pair, x, fields)
        sites = [("guide", name, site) for name, site in terms.guide.items()]
        drawn = terms.prior | terms.observed
        sites += [("model", name, drawn[name]) for name in terms.model_order if name in drawn]
        for role, name, site in sites:
            if why := _not_finite(site):
                return f"site {name!r} of the {role}, {why}"
        for role, name, site in sites:
            if site.log_prob.requires_grad:
                slopes = torch.autograd.grad(
                    site.log_prob.sum(), parameters, retain_graph=True, allow_unused=True
                )
                if which := _first_bad(pair, parameters, slopes):
                    return (
                        f"site {name!r} of the {role}, the gradient of whose log density by "
                        f"{which} is not finite"
                    )
        estimate = loss.objective.estimate(terms, structure, loss.kl_weight)
        if not all_finite([estimate.loss]):
            name = type(loss.objective).__name__
            return f"the objective {name} (every site's log density is finite)"
        which = _first_bad(
            pair, parameters, torch.autograd.grad(estimate.loss, parameters, allow_unused=True)
        )
        return f"the gradient by {which}" if which else ""


def _not_finite(site: Site) -> str:
    value, log_prob, fn = site.value.detach(), site.log_prob.detach(), innermost(site.fn)
    for name in getattr(fn, "arg_constraints", {}):
        parameter = getattr(fn, name, None)
        if (
            isinstance(parameter, Tensor)
            and parameter.is_floating_point()
            and not all_finite([parameter])
        ):
            return f"whose distribution has a {name} that is not finite"
    if value.is_floating_point() and not all_finite([value]):
        return "whose value is not finite"
    if not all_finite([log_prob]):
        bad = ~torch.isfinite(log_prob)
        share = f"{int(bad.any(0).sum())} of {log_prob.shape[-1]} images"
        return f"whose log density is {float(log_prob[bad][0])} for {share}"
    return ""


def _first_bad(pair: Pair, parameters: Sequence[Tensor], slopes: Sequence[Tensor | None]) -> str:
    for parameter, slope in zip(parameters, slopes, strict=True):
        if slope is not None and not all_finite([slope]):
            role, name = pair.name_of(parameter)
            return f"{name!r} of the {role}"
    return ""
