"""Training of a run, new or resumed, and its evaluation at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_vae import distributed
from pyro_vae.choices import registry
from pyro_vae.data.loaders import make_source
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError
from pyro_vae.objectives import Loss
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.runs import evaluate, run_folder
from pyro_vae.runs.command_options import Evaluate
from pyro_vae.runs.evaluate import Tell
from pyro_vae.runs.evaluation_methods import Outcome
from pyro_vae.runs.experiment import Experiment, prepare
from pyro_vae.runs.fit_run import dry_run, fit_run, last_state
from pyro_vae.runs.options import Train
from pyro_vae.runs.provenance import provenance
from pyro_vae.runs.run import Run
from pyro_vae.runs.run_data import resumed
from pyro_vae.signals import Stopped
from pyro_vae.training.history import History
from pyro_vae.training.loop import evaluate_elbo
from pyro_vae.training.state import TrainingState

Show = Callable[[Run, Outcome], None]


def train_run(options: Train, tell: Tell, show: Show = lambda run, found: None) -> None:
    """Train, evaluate, and leave a run behind.

    Args:
        options: with ``resume``, the run in that folder goes on; else one is begun in ``out``.
        tell: is given each line that a user should see meanwhile.
        show: is given the result, in the process that has it, before the pictures are drawn.

    Raises:
        UserError, Failure, Stopped: as `fit_run`; a run that is complete is not resumed.
    """
    with distributed.begun(options.device):
        if options.resume is not None:
            _resumed(run_folder.open_run(options.resume), options, tell, show)
        else:
            _begun(options.decided(), tell, show)


def _begun(options: Train, tell: Tell, show: Show) -> None:
    """A run of its own."""
    if options.out is not None:
        run_folder.refuse_taken(options.out)
    if options.init_from is not None:
        run_folder.open_run(options.init_from)
    device = find_device(options.device)
    experiment, structure = _prepared(partial(prepare, options), options, device, tell)
    if experiment.doubts:
        tell(f"warning: {experiment.doubts}")
    run = run_folder.create(options.out, run_folder.run_name(options))
    with run.held():
        _finished(run, experiment, structure, device, None, tell, show)


def _resumed(run: Run, options: Train, tell: Tell, show: Show) -> None:
    """Go on with a run from its last checkpoint, or with its evaluation where all its steps are
    done.
    """
    device, group = find_device(options.device), distributed.current()
    with run.held():
        if is_complete(run):
            raise UserError(
                f"{run} is complete, so there is nothing to resume; `pyro-vae evaluate {run}` "
                "scores it again"
            )
        run.sweep()
        state, known = group.once(lambda: last_state(run, tell))
        how = partial(resumed, run, options, known)
        with run.code(options.trust):
            experiment, structure = _prepared(how, options, device, tell)
        _finished(run, experiment, structure, device, state, tell, show)


def is_complete(run: Run) -> bool:
    """Whether the run is trained and has been scored."""
    results = run.results()
    return bool(results.get("training") and results.get("evaluations"))


def _prepared(
    how: Callable[[], Experiment], options: Train, device: torch.device, tell: Tell
) -> tuple[Experiment, Structure]:
    experiment = distributed.current().after_the_first(how)  # which may download the data
    if not options.quiet:
        tell(str(experiment.data))
    # too many are reported before the training, not after
    experiment.images("test", options.eval_images)
    return experiment, dry_run(experiment, device)


def _finished(
    run: Run,
    experiment: Experiment,
    structure: Structure,
    device: torch.device,
    state: TrainingState | None,
    tell: Tell,
    show: Show,
) -> None:
    """Train and evaluate, this process having the run's lock."""
    options = experiment.options
    history = fit_run(experiment, run, device, state)
    try:
        run.add_result(training=_as_result(history))
        if not options.quiet:
            tell(str(history) + (f"; stopped by {history.stopped}" if history.stopped else ""))
        if structure.point_masses:
            site, goes_on = structure.point_masses[0], distributed.goes_on()
            found = _reconstruction_error(experiment, device, history, site) if goes_on else None
        else:
            evaluation = _last_evaluation(run, experiment)
            found = evaluate.outcome(experiment, evaluation, history.num_steps)
        if found is None:
            return
        evaluate.keep(run, found)
    except Stopped as stopped:
        stopped.kept = f"the trained pair is saved; score it with: pyro-vae evaluate {run}"
        raise
    show(run, found)
    try:
        evaluate.keep_images(run, experiment, found, options.pictures, options.device)
        if options.pictures:
            with evaluate.drawing(run):
                write_pictures(run, experiment)
    except Stopped as stopped:
        stopped.kept = f"the result is saved; draw the missing pictures with: pyro-vae plot {run}"
        raise


def _as_result(history: History) -> dict[str, Any]:
    told = ("compile", "note", "stopped", "skipped", "init", "resumed")
    length = {"steps": history.num_steps, "epochs": len(history.train)}
    seconds = {"seconds": round(history.seconds, 3)}
    return {**length, **seconds, **{name: getattr(history, name) for name in told}}


def _last_evaluation(run: Run, experiment: Experiment) -> Evaluate:
    """The evaluation that ends a training: a guide without a network fits the test images first."""
    options, method = experiment.options, "iw" if experiment.amortized else "refine"
    return Evaluate.like(options, run.folder, method=method, num_images=options.eval_images)


def _reconstruction_error(
    experiment: Experiment, device: torch.device, history: History, site: str
) -> Outcome:
    """−log p(x | z) of the test images, for a guide that has no density."""
    begun = time.monotonic()
    pair = Pair.of(experiment.model, experiment.guide)
    loss = Loss(registry.build("objective", "Trace_ELBO"), pair).to(device)
    x, words = experiment.images("test", experiment.options.eval_images)
    fields = experiment.fields("test", experiment.options.eval_images)
    record = evaluate_elbo(loss, make_source(x, fields, 500, device), experiment.options.seed)
    why = (
        f"the guide's site {site!r} is a point mass, which has no density, so there are no "
        "importance weights and no log p(x): choose a guide with a density, such as MeanField"
    )
    error = -record.reconstruction
    result = {
        "reconstruction_error": error,
        "num_images": len(x),
        "mean": None,
        "protocol": {**words, **experiment.protocol(history.num_steps)},
        "warnings": [why],
        **provenance(time.monotonic() - begun),
    }
    line = f"reconstruction error −log p(x | z): {error:.2f} nats (N = {len(x)})\n  {why}"
    return Outcome(result, line, "test")


def write_pictures(
    run: Run, experiment: Experiment, seed: int = 0, pages: tuple[str, ...] = ()
) -> list[Path]:
    """All pictures that fit the run, or the pages that are named."""
    from pyro_vae.plots import pages as plotting

    return plotting.write_pictures(
        run.folder,
        experiment.model,
        experiment.guide,
        experiment.observed,
        experiment.data,
        run.rows(),
        seed=seed,
        pages=pages or None,
    )
