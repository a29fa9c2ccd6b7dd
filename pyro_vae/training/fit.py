"""``fit``: stochastic variational inference (SVI) of a pair. It checks the arguments, builds the
training, and runs its loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from tqdm import tqdm

from pyro_vae import distributed
from pyro_vae.ambient import casts_anew, need_float32, turn, unusual
from pyro_vae.choices import registry
from pyro_vae.data.batches import Source
from pyro_vae.data.loaders import make_source
from pyro_vae.data.observations import Observation
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError
from pyro_vae.objectives import Loss, Objective
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Structure
from pyro_vae.rng import own_randomness
from pyro_vae.training.callbacks import EpochEnd
from pyro_vae.training.divergence import Diverged
from pyro_vae.training.history import History
from pyro_vae.training.init import Init, begin, start_from_data
from pyro_vae.training.kl_warmup import Warmup, make_warmup
from pyro_vae.training.loop import Loop
from pyro_vae.training.optimizers import OptimizerSpec
from pyro_vae.training.options import (
    FitOptions,
    check_callbacks,
    check_data,
    draw_once,
    first_batch,
    observations,
    refuse_unseen,
    validation_source,
    words_of,
)
from pyro_vae.training.oracle import check_training
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.settings import by_site
from pyro_vae.training.snapshot import Position
from pyro_vae.training.state import TrainingState, differences, this_place
from pyro_vae.training.stepper import Stepper
from pyro_vae.validation import check_choice

__all__: Sequence[str] = ["Diverged", "fit"]


@takes_fields
def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x_train: Any,
    objective: str | ELBO = "TraceMeanField_ELBO",
    num_epochs: int = 10,
    batch_size: int | None = 128,
    learning_rate: float = 1e-3,
    optimizer: OptimizerSpec = "Adam",
    schedule: str | Schedule = "cosine",
    num_steps: int | None = None,
    kl_weight: float | str | Mapping[str, float] = 1.0,
    kl_warmup: float | str | Warmup = 0,
    grad_clip: float | None = None,
    callbacks: Iterable[Callable[[EpochEnd], bool | None]] = (),
    freeze: str | None = None,
    binarize: str | Observation | None = None,
    x_valid: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = True,
    on_divergence: str = "stop",
    init: Init | None = None,
    resume: TrainingState | str | Path | None = None,
    precision: str = "float32",
    **fields: Any,
) -> History:
    """Train a model and a guide by stochastic variational inference (SVI).

    Both are changed in place, and stay on ``device``. Under torch.distributed (torchrun) every one
    of R processes makes the same call and takes ``batch_size`` images a step; the gradient is that
    of one process with R times as many.

    Example::

        history = pv.fit(model, guide, x, num_epochs=2, batch_size=6, progress=False)
        history.train[-1].elbo  # nats per image

    Args:
        model, guide: Pyro programs of ``x``, ``(B, *event_shape)``, and of the named fields that
            their signatures have. Each is a PyroModule, a bound method, or a function.
        x_train: images ``(N, *event_shape)``, a tensor or array; or a torch Dataset or DataLoader,
            which streams.
        objective: a name, a call such as ``"Trace_ELBO(num_particles=5)"``, an objective, or one of
            Pyro's own, such as ``pyro.infer.TraceGraph_ELBO()``, which Pyro's own code runs
            eagerly.
        num_epochs, num_steps: the length of the training; ``num_steps`` wins where it is given.
        batch_size: images in one step; None gives each step all rows in their order, as
            ``SVI.step(x)`` does. This serves programs that take rows of their own, or have a
            parameter for each row.
        learning_rate: the largest learning rate of the schedule.
        optimizer: a name or call, such as ``"Adam(eps=1e-4)"``, a ``torch.optim`` class, or a
            function of the list of parameters that returns an optimiser.
        schedule: how the learning rate falls: ``cosine`` to 0, ``constant``, ``linear``,
            ``geometric``, or a Schedule.
        kl_weight, kl_warmup: the weight of the KL (β), reached linearly from 0 over ``kl_warmup``
            epochs, or by a warm-up such as ``"Cyclical(cycles=4, ramp=0.5)"``. ``{"z1": 1.0, "z2":
            0.5}`` gives weights by site; the others' are 1.
        grad_clip: the largest norm of the gradient of the mean loss per image.
        callbacks: called with an ``EpochEnd`` after each epoch; returning True ends the training.
            ``Checkpoints`` is one.
        freeze: ``"model"``, ``"guide"``, or a pattern of names of `parameters`, such as
            ``"model.likelihood.*"``: these parameters do not change.
        binarize: ``dynamic`` (new binary pixels at each visit), ``static`` (drawn once),
            ``threshold``, ``none``; or an ``Observation``, such as ``pv.data.observe(…).observe``.
            A validation set is drawn once.
        x_valid: validation images, or a dict with ``x`` and the named fields; their ELBO is
            measured after each epoch.
        seed: of the noise, the order of the images and the binarization. The caller's random state
            is unchanged.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        compile: ``off`` runs the programs eagerly at each step. ``graph`` and ``inductor`` trace
            them once; with programs of your own you thereby say that no Python value changes
            between steps (docs/tracing.md). ``auto`` traces the parts of this package only.
        progress: whether steps and figures are shown on stderr.
        on_divergence: ``stop``, or ``skip``: a step that is not finite is undone and counted (the
            device is then read at each step).
        init: initial values for the parameters, where name and shape are the same: a run folder, a
            folder of ``Checkpoints``, a file of `save_parameters`, a pair, or a mapping such as
            `parameters` returns. ``history.init`` lists the parameters that were not in it.
        resume: a ``TrainingState``, or a folder of ``Checkpoints``: continue that training. All
            other arguments must be as they were. On the CPU, with the same tier and number of
            threads, the result is bit for bit that of a training without a stop.
        precision: ``bfloat16`` rounds the factors and results of a step's products, as torch's
            autocast does; draws, densities, sums, the optimiser and the validation stay in float32.
            ``history.note`` has the error on the first batch's ELBO.
        **fields: tensors with one row for each image, passed to the programs that name them.

    Returns:
        A `History`: ``history.train`` and ``history.valid`` have one record for each epoch, in nats
        per image.

    Raises:
        UserError: the pair, the data or an option can't be trained with; raised before the first
            step.
        Diverged: something is not finite. The error names the step and the site; the parameters are
            those before that step.

    Reference:
        Hoffman et al. 2013, "Stochastic Variational Inference"; Kingma and Welling 2014,
        "Auto-Encoding Variational Bayes" (AEVB), algorithm 1.
    """
    options = FitOptions.of(locals())
    with turn(), torch.enable_grad(), casts_anew():
        return _fit(model, guide, x_train, fields, options)


def _fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x_train: Any,
    fields: dict[str, Any],
    options: FitOptions,
) -> History:
    seed = options.seed
    after_epoch = check_callbacks(options.callbacks)
    goal: Objective = registry.build("objective", options.objective)
    decay: Schedule = registry.build("schedule", options.schedule)
    place = find_device(options.device)
    pair, group = Pair.of(model, guide).to(place), distributed.current()
    observe, observed, source, valid = _sources(pair, options, x_train, fields, place)
    loss, warmup = Loss(goal, pair).to(place), make_warmup(options.kl_warmup)
    total_steps = options.num_steps or options.num_epochs * source.num_batches
    settings = words_of(options, source, valid, total_steps, goal, decay, warmup, observed)
    if options.precision != "float32":
        need_float32(options.precision, pair.dtype)
        loss.rounded, settings["precision"] = True, options.precision
    kl_weight, loss.site_weights = by_site(options.kl_weight)
    options = replace(options, kl_weight=kl_weight)
    begun = _begun(options.resume, settings)
    with own_randomness(seed, place), pair.active():
        images, rows = first_batch(source, observe, pair)
        check_data(pair, source, observe, images, rows)
        structure = pair.structure(images, rows, scored=False, at_once=source.whole)
        loss.objective = goal.suited(structure)
        for name in loss.site_weights:
            check_choice("latent site of kl_weight", name, structure.latents)
        if begun is None:
            start_from_data(pair, source, observe, seed)
        started = "" if begun is not None or options.init is None else begin(pair, options.init)
        group.broadcast(pair.tensors())
        if valid is not None:
            check_data(pair, valid, None, *first_batch(valid, None, pair))
        # the tier that it ran in, for the same bits
        if begun is not None and options.compile == "auto":
            options = replace(options, compile=begun.place.get("tier", "auto"))
        stepper = Stepper(loss, source, observe, options, total_steps, group)
        checked = check_training(stepper, next(source.in_order()))
        note = "; ".join((stepper.note, *unusual(place), *checked))
        history, at = History(compile=stepper.tier, note=note, init=started), Position.start(place)
        here = this_place(place, stepper.tier)
        torch.manual_seed(seed)
        if begun is not None:
            history, at = _take_up(begun, history, at, here, stepper, after_epoch)
        if options.progress and group.first:
            tqdm.write("\n".join(_told(history, structure)), file=sys.stderr)
        loop = Loop(stepper, decay, warmup, valid, after_epoch, history, at, settings, here)
        return loop.run()


def _told(history: History, structure: Structure) -> list[str]:
    """What is said before the first step."""
    init = [f"init: {history.init}"] if history.init else []
    resumed = [f"resumed {line}" for line in history.resumed[-1:]]
    return [f"training step: {history.note}", *structure.words(), *init, *resumed]


def _sources(
    pair: Pair, options: FitOptions, x_train: Any, fields: dict[str, Any], place: torch.device
) -> tuple[Observation | None, Observation | None, Source, Source | None]:
    """What is applied at each visit, and what is applied at all; the training set and that of
    validation.
    """
    observe, once = observations(options.binarize, x_train)
    group, seed = distributed.current(), options.seed
    source = make_source(
        draw_once(x_train, once, seed, "train"),
        fields,
        options.batch_size,
        place,
        "x_train",
        (group.rank, group.size),
        missing=observe is None or isinstance(observe, Observation),
    )
    if options.x_valid is not None:
        refuse_unseen(pair.guide.owner)
    valid = validation_source(options.x_valid, observe or once, seed, fields, source, place)
    return observe, observe or once, source, valid


def _begun(resume: Any, settings: Mapping[str, Any]) -> TrainingState | None:
    """The stopped training that is to go on, which had these settings."""
    begun = TrainingState.load(resume) if isinstance(resume, str | Path) else resume
    if begun is None:
        return None
    if not isinstance(begun, TrainingState):
        raise UserError(
            f"resume is a {type(begun).__name__}: expected a TrainingState, or the path of "
            "checkpoints"
        )
    begun.check_settings(settings)
    return begun


def _take_up(
    begun: TrainingState,
    new: History,
    start: Position,
    here: Mapping[str, Any],
    stepper: Stepper,
    callbacks: Sequence[Any],
) -> tuple[History, Position]:
    """Put a stopped training's state into what has been built again, and say in one line where it
    goes on.
    """
    begun.restore_callbacks(callbacks)
    at = begun.restore(stepper.loss.pair, stepper.update.optim, start.sums.device)
    stepper.health.begin(at.step, at.skipped)
    history = begun.records()
    history.compile, history.note = new.compile, new.note
    line = f"at step {at.step}, epoch {at.epoch}"
    if stepper.source.own_order and at.step > at.first_step:
        at.begin_epoch(at.epoch)
        line += "; a DataLoader can't repeat its order, so this epoch starts again"
    if changed := differences(begun.place, here):
        line += f"; {changed}"
    history.resumed = (*history.resumed, line)
    return history, at
