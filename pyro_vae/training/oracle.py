"""The live oracle: a user's own pair is compared with stock Pyro and torch at its first batch."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import infer, poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae.compile.trace import apart, restored
from pyro_vae.data.batches import Batch
from pyro_vae.errors import UserError, first_line
from pyro_vae.objectives.base import Objective
from pyro_vae.objectives.elbo import Trace_ELBO
from pyro_vae.objectives.pyro_elbo import stock_loss
from pyro_vae.pair.comparison import Independence, independence
from pyro_vae.pair.log_weights import refuse_interacting
from pyro_vae.pair.module_state import attributes_kept, randomness_kept, statistics_kept
from pyro_vae.pair.nodes import Fields, copies, taken
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.supports import support_notes
from pyro_vae.training.select_step import hooked
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.train_step import TrainStep
from pyro_vae.training.updates import PLAIN, has_hooks

MOST_IMAGES = 8
"""Of the first batch: enough for BatchNorm, and a small part of an epoch's work."""

LOSS_TOLERANCE, GRADIENT_TOLERANCE, STEP_TOLERANCE = 1e3, 1e4, 1e3
"""In units of the last place of the largest value; a gradient is a long sum, which is added in
another order.
"""


def check_training(stepper: Stepper, batch: Batch) -> tuple[str, ...]:
    """Compare the training step with `pyro.infer` and torch's unfused optimiser; what is changed is
    put back.

    Args:
        batch: of images as they are stored, with their fields.

    Returns:
        What was compared and what was not, and what is to be said of the pair, a sentence each.

    Raises:
        UserError: the loss, a gradient or the step differs from stock Pyro's and torch's.
    """
    loss, pair = stepper.loss, stepper.loss.pair
    x, fields = taken(*batch, slice(None if stepper.source.whole else MOST_IMAGES))
    with randomness_kept(), pair.active():
        seen = pair.cast(x if stepper.observe is None else stepper.observe(x))
        structure = pair.structure(seen, fields, scored=False)
        notes, alone = _unscored_notes(stepper, structure), Independence(structure.unscored)
        if not structure.unscored:
            notes, alone = support_notes(pair, seen, fields), independence(pair, seen, fields)
        with (
            pair.active(training=True),
            restored([*pair.tensors(), *stepper.parameters]),
            attributes_kept(pair.modules),
        ):
            found = [_held_loss(pair, loss.objective, structure, seen, fields, stepper.parameters)]
            if step := _held_step(stepper, x, fields):
                found.append(step)
            notes += _rounding(stepper, *batch)
    words = (
        f"checked against pyro.infer {pyro.__version__}: {', '.join([*found, *_in_words(alone)])}"
    )
    if alone.site and not structure.unscored:
        notes += (
            f"site {alone.site} depends on the other images of a batch, so this pair has no "
            "log p(x) of one image",
        )
    return words, *notes


def _rounding(stepper: Stepper, x: Tensor, fields: Fields) -> tuple[str, ...]:
    """The error on the batch's ELBO of a step whose products are rounded, in the same noise."""
    loss = stepper.loss
    if not loss.rounded:
        return ()
    found = []
    for loss.rounded in (False, True):
        pyro.set_rng_seed(0)
        found.append(stepper.step.mean_loss(*copies(x, fields))[0] / len(x))
    _, reconstruction, kl = (found[1] - found[0]).tolist()
    error = reconstruction - kl
    return (f"bfloat16 products: {error:+.1g} nats an image on the first batch's ELBO",)


def _unscored_notes(stepper: Stepper, structure: Structure) -> tuple[str, ...]:
    """What is to be said of a pair that trains and has no log p(x) of an image."""
    notes: tuple[str, ...] = (f"no log p(x) of one image: {structure.unscored}",)
    source = stepper.source
    if structure.shared and not structure.subsampling and source.batch_size < source.num_images:
        notes += (
            f"what concerns {', '.join(map(repr, structure.shared))} is counted in full in "
            f"each batch of {source.batch_size}. For the ELBO of the whole set give the data "
            f"plate the size of the set: pyro.plate('data', {source.num_images}, "
            "subsample_size=len(x))",
        )
    return notes


def check_scores(
    pair: Pair, x: Tensor, fields: Fields, *, supports: bool = True
) -> tuple[str, tuple[str, ...]]:
    """Compare the log weights of the first images with stock Pyro's, and each image's against
    another batch's.

    Args:
        supports: whether the two programs' supports matter, as they do where the guide is drawn
            from.

    Returns:
        What was compared, for the protocol; and warnings.

    Raises:
        UserError: images depend on each other; the guide draws where the prior has no density; the
            weights are not Pyro's.
    """
    with randomness_kept():
        alone = refuse_interacting(pair, x, fields)
        notes = support_notes(pair, x, fields) if supports else ()
        few = copies(*taken(x, fields, slice(MOST_IMAGES)))
        with pair.active(training=False), torch.no_grad():
            found = _held_loss(pair, Trace_ELBO(), pair.structure(*few), *few, ()).replace(
                "loss", "log weights", 1
            )
    return f"against pyro.infer {pyro.__version__}: {', '.join([found, *_in_words(alone)])}", notes


def _in_words(alone: Independence) -> list[str]:
    if alone.unchecked:
        return [f"not the independence of the images, because {alone.unchecked}"]
    return [] if alone.site else ["independence"]


def _held_loss(
    pair: Pair,
    objective: Objective,
    structure: Structure,
    x: Tensor,
    fields: Fields,
    parameters: Sequence[nn.Parameter],
) -> str:
    """The loss of one draw an image, and its gradient, in the same noise."""
    if not objective.stageable:
        return "loss and gradient are its own"
    ours, theirs = _counterparts(objective, structure)
    # a hook is the user's, and may count; besides sums Pyro has another score-function estimator
    other = isinstance(theirs, infer.TraceEnum_ELBO) and structure.score_function
    watched = [] if other or any(map(hooked, parameters)) else list(parameters)
    one = torch.ones((), dtype=pair.dtype, device=x.device)

    def estimated() -> Tensor:
        terms = pair.run(*copies(x, fields), every_value=True)
        return ours.estimate(terms, structure, one).loss

    differentiated = partial(_differentiated, watched)
    stock = partial(_stock, pair, theirs, bool(structure.summed), x, fields)
    own = differentiated(estimated)
    if not all(bool(value.isfinite().all()) for value in own):
        return "not the loss, because it or its gradient is not finite here"
    try:
        judge = differentiated(stock)
    except Exception as error:
        return (
            f"not the loss, because {type(theirs).__name__} fails on this pair "
            f"({first_line(error)})"
        )
    of = "" if type(ours) is type(objective) else f" of {type(ours).__name__}"
    for name, rows, tolerance in (
        ("loss", slice(0, 1), LOSS_TOLERANCE),
        ("gradient", slice(1, None), GRADIENT_TOLERANCE),
    ):
        if apart := _apart(own[rows], judge[rows], tolerance):
            if _apart(differentiated(stock)[rows], judge[rows], tolerance):
                return (
                    f"not the {name}, because the programs give another result at each run with the "
                    "same seed"
                )
            raise UserError(
                f"the {name}{of} of this pair at its first images differs from pyro.infer's by "
                f"{apart}: this is a bug of pyro_vae, and its numbers would be wrong. Train "
                "with pyro.infer.SVI, and report the pair"
            )
    return f"loss{of}, gradient" if watched else f"loss{of}"


def _stock(pair: Pair, elbo: ELBO, summed: bool, x: Tensor, fields: Fields) -> Tensor:
    """Pyro's own loss of the pair, run by Pyro's own code."""
    batch = copies(x, fields)
    # what the guide wrote into its batch is there
    model: Callable[[], Any] = lambda: pair.model(*copies(*batch))  # noqa: E731
    if summed:
        model = infer.config_enumerate(model, default="parallel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # what the guide observes is no density of z: weights are without it
        guide = poutine.block(
            lambda: pair.guide(*batch),
            hide_fn=lambda site: site["type"] == "sample" and site["is_observed"],
        )
        return torch.as_tensor(stock_loss(elbo, model, guide), device=x.device)


def _differentiated(watched: Sequence[Tensor], run: Callable[[], Tensor]) -> list[Tensor]:
    """A loss in the same noise at each call, and its gradients, 0 where it does not depend."""
    pyro.set_rng_seed(0)
    with statistics_kept():
        value = run()
    if not (watched and value.requires_grad):
        return [value.detach()]
    gradients = torch.autograd.grad(value, watched, allow_unused=True, materialize_grads=True)
    return [each.detach() for each in (value, *gradients)]


def _counterparts(objective: Objective, structure: Structure) -> tuple[Objective, ELBO]:
    """The objective at one draw an image, and Pyro's own of the same loss; where Pyro has none,
    Trace_ELBO of both.
    """
    if structure.summed or structure.enumerated:
        return Trace_ELBO(), infer.TraceEnum_ELBO(
            max_plate_nesting=-structure.geometry.particle_dim - 1
        )
    # of a KL that is sampled here Pyro's mean-field ELBO may take a closed form that is wrong
    if objective.stock is None or (
        objective.stock is infer.TraceMeanField_ELBO and structure.sampled
    ):
        return Trace_ELBO(), infer.Trace_ELBO()
    return replace(objective, num_particles=1), objective.stock()  # type: ignore[call-arg]


def _held_step(stepper: Stepper, x: Tensor, fields: Fields) -> str:
    """One eager step by copies of the optimiser: in its own form, and neither fused nor batched
    over parameters.
    """
    update, parameters, outcomes = stepper.update, stepper.parameters, []
    kind = type(update.optim)
    own = update.reduce is not None or has_hooks(update.optim) or any(map(hooked, parameters))
    if own or not kind.__module__.startswith("torch.optim"):
        return ""
    for form in ({}, PLAIN):
        state = defaultdict(dict, {p: deepcopy(own) for p, own in update.optim.state.items()})
        step = TrainStep(stepper.loss, parameters, update.like(form, state), stepper.observe)
        with stepper.step.undone():
            pyro.set_rng_seed(0)
            try:
                sums = step(*copies(x, fields))
            except RuntimeError as error:  # a rate that is no float32
                return f"not the step, because torch's own fails ({first_line(error)})"
            outcomes.append([parameter.detach().clone() for parameter in parameters])
    if bool(sums.isfinite().all()) and (apart := _apart(outcomes[0], outcomes[1], STEP_TOLERANCE)):
        raise UserError(
            f"one step of {kind.__name__} differs from torch's unfused one by {apart}: this is "
            "a bug of a fused kernel. Give optimizer=lambda ps: "
            f"torch.optim.{kind.__name__}(ps, fused=False, foreach=False), and report the pair"
        )
    return "step"


def _apart(own: Sequence[Tensor], judge: Sequence[Tensor], tolerance: float) -> str:
    """The largest difference in words, where it is above the tolerance; what is NaN in both is
    equal.
    """
    found = [apart(a, b) for a, b in zip(own, judge, strict=True) if b.numel()]
    worst, size = (
        (max(each, default=0.0) for each in zip(*found, strict=True)) if found else (0.0, 0.0)
    )
    eps = max((torch.finfo(each.dtype).eps for each in (*own, *judge)), default=0.0)
    return f"{worst:.1e} of {size:.1e}" if worst > tolerance * eps * max(size, 1e-3) else ""
