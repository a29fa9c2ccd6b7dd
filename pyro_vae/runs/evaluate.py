"""Evaluation of a run: its pair is scored, and the result is stored in its folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from pyro_vae import distributed
from pyro_vae.analysis.encode import reconstruct
from pyro_vae.errors import first_line
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.evaluation.result_files import load_estimate, save_estimate
from pyro_vae.runs import evaluation_methods
from pyro_vae.runs.command_options import Compare, Evaluate
from pyro_vae.runs.evaluation_methods import Outcome
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.provenance import provenance
from pyro_vae.runs.run import Run, shown
from pyro_vae.runs.run_data import trained
from pyro_vae.signals import Stopped

Tell = Callable[[str], None]
"""Is given each line that a user should see meanwhile."""


def evaluate_run(run: Run, options: Evaluate, tell: Tell) -> Outcome | None:
    """Score the run's pair as asked for, and keep what is found; None in processes that have
    nothing left to do.
    """
    run.results()  # damaged results are reported before the work, not after
    new = options.split == "all"
    experiment, steps = distributed.current().after_the_first(
        lambda: trained(run, options, tell, new)
    )
    try:
        found = outcome(experiment, options, steps)
    except Stopped as stopped:
        stopped.kept = "nothing was added to the run"
        raise
    if found is not None:
        keep_all(run, experiment, found, options)
    return found


def outcome(experiment: Experiment, options: Evaluate, steps: int) -> Outcome | None:
    """What the method finds, for the process that is to write it; None in the others, which are
    done.
    """
    if not evaluation_methods.METHODS[options.method].divided and not distributed.goes_on():
        return None
    begun = time.monotonic()
    found = evaluation_methods.evaluate(experiment, options, steps)
    if not distributed.goes_on():
        return None
    return replace(found, figures={**found.figures, **provenance(time.monotonic() - begun)})


def keep_all(run: Run, experiment: Experiment, found: Outcome, options: Evaluate) -> None:
    """Write an evaluation into the run's folder, with what is drawn of it."""
    keep(run, found)
    try:
        keep_images(run, experiment, found, options.pictures, options.device)
    except Stopped as stopped:
        stopped.kept = f"the result is in {shown(run.results_file)}"
        raise


def keep(run: Run, found: Outcome) -> None:
    """Write the estimate, for `compare`, before the figures that say that it is there: each file
    appears whole or not at all.
    """
    if found.estimate is not None:
        path = run.estimate_file(found.figures["method"], found.split)
        save_estimate(path, found.estimate, run.trained())
    run.add_result(evaluations=[{"split": found.split, **found.figures}])


def keep_images(
    run: Run, experiment: Experiment, found: Outcome, pictures: bool, device: str
) -> None:
    """The per-image figures as a table, and the page of plots, where there are such figures."""
    if found.estimate is None or found.x is None:
        return
    found.estimate.to_csv(run.per_image_file)
    if pictures:
        with drawing(run):
            found.estimate.plot(run.folder / "evaluation.png", *_shown(experiment, found, device))


@contextmanager
def drawing(run: Run) -> Iterator[None]:
    """What fails inside is a picture, and ends nothing."""
    try:
        yield
    except Exception as error:
        warnings.warn(
            f"pictures are missing ({first_line(error)}); draw them with: pyro-vae plot {run}",
            stacklevel=3,
        )


def stored(run: Run, options: Compare, tell: Tell) -> LogMarginal | None:
    """The run's latest estimate of the kind that is asked for, of its present parameters."""
    ll = load_estimate(run.estimate_file(options.method, options.split), run.trained(tell))
    if not isinstance(ll, LogMarginal) or options.num_images not in (None, ll.num_images):
        return None
    return ll if options.num_samples in (None, ll.num_samples) else None


def evaluated(run: Run, options: Compare, number: int | None, tell: Tell) -> LogMarginal:
    """A fresh estimate, which is added to the run."""
    if not options.quiet:
        tell(f"evaluating {run}")
    own = {"method": options.method, "split": options.split, "data": options.data}
    evaluation = Evaluate.like(options, run.folder, num_images=number, **own)
    experiment, steps = trained(run, options, tell)
    found = outcome(experiment, evaluation, steps)
    assert found is not None and found.estimate is not None
    keep_all(run, experiment, found, evaluation)
    return found.estimate


def _shown(
    experiment: Experiment, found: Outcome, device: str
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The images for the page of plots and their reconstructions; none of a table."""
    assert found.x is not None
    if experiment.data.table:
        return None, None
    fields = experiment.fields(found.split, len(found.x))
    shown = reconstruct(experiment.model, experiment.guide, found.x, device=device, **fields)
    fitting = (each for each in shown.values() if each[0].numel() == found.x[0].numel())
    return found.x, next(fitting, None)
