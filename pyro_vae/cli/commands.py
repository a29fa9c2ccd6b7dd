"""What each command does, once its options are read and checked: the part of the command line that
needs torch.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial, singledispatch
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_vae import distributed, lookup, registry
from pyro_vae.analysis.encode import reconstruct
from pyro_vae.cli import bench
from pyro_vae.data.loaders import make_source
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.objectives import Loss
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.runs import evaluation_methods, parts, run_folder
from pyro_vae.runs.experiment import Experiment, dry_run, prepare
from pyro_vae.runs.options import Audit, Bench, Compare, Evaluate, List, Plot, Sample, Train
from pyro_vae.runs.provenance import provenance
from pyro_vae.runs.run_data import resumed, trained
from pyro_vae.runs.run_folder import Run
from pyro_vae.runs.train import fit_run, last_state
from pyro_vae.signals import Stopped
from pyro_vae.training import checkpoint_files
from pyro_vae.training.history import History
from pyro_vae.training.loop import evaluate_elbo
from pyro_vae.training.state import TrainingState

LIST_WIDTH, LEAST_TEXT = 120, 40
"""Columns of `list` where standard output is no terminal, and of its texts beside the names in a
terminal however narrow.
"""


@singledispatch
def execute(command: Any) -> None:
    """Run one command; its options have been checked."""
    raise TypeError(f"no such command: {type(command).__name__}")


# ---------------------------------------------------------------------------------------------------------------------
# train


@execute.register
def train(options: Train) -> None:
    """Train, evaluate, and leave a run behind."""
    options = options.decided()
    with distributed.begun(options.device):
        if options.resume is not None:
            _resume(run_folder.open_run(options.resume), options)
        else:
            _begin(options)


def _begin(options: Train) -> None:
    """A run of its own."""
    if options.out is not None:
        run_folder.refuse_taken(options.out)
    device = find_device(options.device)
    experiment, structure = _prepared(partial(prepare, options), options, device)
    run = run_folder.create(options.out, run_folder.run_name(options))
    with run.held():
        _train(run, experiment, structure, device, None)


def _resume(run: Run, options: Train) -> None:
    """Go on with a run from its last checkpoint, or with its evaluation where all its steps are
    done.
    """
    device, group = find_device(options.device), distributed.current()
    with run.held():
        results = run.results()
        if results.get("training") and results.get("evaluations"):
            raise UserError(
                f"{run} is complete, nothing is left to resume; `pyro-vae evaluate {run}` scores "
                "it again"
            )
        run.sweep()
        state, known = group.once(lambda: last_state(run, _say))
        with run.code(options.trust):
            how = partial(resumed, run, options, known)
            experiment, structure = _prepared(how, options, device)
        _train(run, experiment, structure, device, state)


def _prepared(
    how: Callable[[], Experiment], options: Train, device: torch.device
) -> tuple[Experiment, Structure]:
    experiment = distributed.current().after_the_first(how)  # which may download the data
    if not options.quiet:
        _say(str(experiment.data))
    experiment.images(
        "test", options.eval_images
    )  # too many are told before the training, not after
    return experiment, dry_run(experiment, device)


def _train(
    run: Run,
    experiment: Experiment,
    structure: Structure,
    device: torch.device,
    state: TrainingState | None,
) -> None:
    """Train, evaluate and print, the run's folder being held."""
    options = experiment.options
    history = fit_run(experiment, run, device, state)
    try:
        run.add_result(
            training={
                "steps": history.num_steps,
                "epochs": len(history.train),
                "seconds": round(history.seconds, 3),
                "compile": history.compile,
                "note": history.note,
                "stopped": history.stopped,
                "skipped": history.skipped,
                "resumed": history.resumed,
            }
        )
        if not options.quiet:
            _say(str(history) + (f"; ended by {history.stopped}" if history.stopped else ""))
        found: evaluation_methods.Outcome | None = None
        if structure.point_masses:
            if not distributed.goes_on():
                return
            result, headline = _reconstruction_error(
                experiment, device, history, structure.point_masses[0]
            )
        else:
            method: Literal["iw", "refine"] = (
                "iw" if experiment.amortized else "refine"
            )  # a guide without a network fits the test images first
            found = _outcome(experiment, _evaluation(run, options, method), history.num_steps)
            if found is None:
                return
            result, headline = found.figures, found.headline
        run.add_result(evaluations=[{"split": "test", **result}])
        if found is not None:
            _keep_images(run, experiment, found, options.pictures, options.device)
        if options.pictures:
            _pictures(run, experiment)
    except Stopped as stopped:
        stopped.kept = f"the trained pair is kept: pyro-vae evaluate {run}"
        raise
    _print_result(run, result, headline, options.json)


def _reconstruction_error(
    experiment: Experiment, device: torch.device, history: History, site: str
) -> tuple[dict[str, Any], str]:
    """−log p(x | z) of the test images, for a guide that has no density."""
    begun = time.monotonic()
    pair = Pair.of(experiment.model, experiment.guide)
    loss = Loss(registry.build("objective", "Trace_ELBO"), pair).to(device)
    x, words = experiment.images("test", experiment.options.eval_images)
    fields = experiment.fields("test", experiment.options.eval_images)
    record = evaluate_elbo(loss, make_source(x, fields, 500, device), experiment.options.seed)
    why = (
        f"the guide's site {site!r} is a point mass, which has no density: no importance weights, "
        "and no log p(x); swap in a guide with a density, such as MeanField"
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
    return (
        result,
        f"reconstruction error −log p(x | z): {error:.2f} nats an image (N = {len(x)})\n  {why}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# evaluate, audit, compare, sample, plot, list


@execute.register
def evaluate(options: Evaluate) -> None:
    """Estimate log p(x) again, and add it to the run's results."""
    with distributed.begun(options.device):
        find_device(options.device)
        run = run_folder.open_run(options.run)
        run.results()  # damaged results are told before the work, not after
        experiment, steps = distributed.current().after_the_first(
            lambda: trained(run, options, _say, new=options.split == "all")
        )
        try:
            found = _outcome(experiment, options, steps)
        except Stopped as stopped:
            stopped.kept = "nothing was added to the run"
            raise
    if found is None:
        return
    _keep(run, experiment, found, options)
    _print_result(run, found.figures, found.headline, options.json)


@execute.register
def audit(options: Audit) -> None:
    """Write a script into the run that checks log weights by stock Pyro, and the source that it
    needs.
    """
    from pyro_vae.runs.audit import NUM_IMAGES, write_audit

    run = run_folder.open_run(options.run)
    with registry.recorded() as calls:
        experiment, _ = trained(run, options, _say)
    number = min(NUM_IMAGES, len(experiment.images("test", None)[0]))
    x, _ = experiment.images("test", number)
    weights = checkpoint_files.newest(run.checkpoints).path
    pair = experiment.model, experiment.guide
    found = write_audit(
        run.folder, weights, *pair, calls, x, experiment.fields("test", number), options.seed
    )
    print(
        f"{run_folder.shown(found.script)} takes torch, pyro and copies of the pair's source; "
        "diff these with the originals:"
    )
    for copy, original in found.copies.items():
        print(f"  {run_folder.shown(copy)}  {run_folder.shown(original)}")
    print(f"run it, with this package or without: python {run_folder.shown(found.script)}")


@execute.register
def compare_runs(options: Compare) -> None:
    """Paired differences between runs, from what they have stored."""
    from pyro_vae.evaluation.compare import compare

    find_device(options.device)
    opened = [run_folder.open_run(folder) for folder in options.runs]
    stored = {str(run): _stored(run, options) for run in opened}
    number = options.num_images
    if number is None:
        number = next((ll.num_images for ll in stored.values() if ll is not None), None)
    for run in opened:
        found = stored[str(run)]
        if found is None or number not in (None, found.num_images):
            stored[str(run)] = _evaluated(run, options, number)
    result = compare({name: ll for name, ll in stored.items() if ll is not None})
    print(
        json.dumps(run_folder.finite(result.to_dict()), ensure_ascii=False)
        if options.json
        else result
    )


@execute.register
def sample(options: Sample) -> None:
    """Draw images into one picture."""
    find_device(options.device)
    run = run_folder.open_run(options.run)
    path = _picture_file(options.out) if options.out is not None else run.folder / "samples.png"
    with run.code(options.trust):
        model, guide, held = run.load_pair(tell=_say)
    from pyro_vae.plots import pages as plotting

    shape = tuple(held.metadata["event_shape"])
    wanted = {
        "guide": guide,
        "device": options.device,
        **_classes(model, options, held.metadata.get("num_classes")),
    }
    print(
        run_folder.shown(
            plotting.samples_picture(model, shape, options.number, path, options.seed, **wanted)
        )
    )


def _classes(model: Any, options: Sample, num_classes: int | None) -> dict[str, torch.Tensor]:
    """The field ``y`` of the images to draw, for a model that names it: the class asked for, or all
    classes in turn.
    """
    if not Program("model", model).wants("y") or num_classes is None:
        if options.y is not None:
            raise UserError(f"--y {options.y}: this run's model takes no class; leave it out")
        return {}
    if options.y is not None and options.y >= num_classes:
        raise UserError(f"--y {options.y}: the classes are 0 to {num_classes - 1}")
    return {
        "y": torch.arange(options.number) % num_classes
        if options.y is None
        else torch.full((options.number,), options.y)
    }


@execute.register
def plot(options: Plot) -> None:
    """Draw the run's pictures again, or those of several runs side by side."""
    device = find_device(options.device)
    opened = [run_folder.open_run(folder) for folder in (options.run, *options.beside)]
    path = (
        _picture_file(options.out) if options.out is not None else opened[0].folder / "beside.png"
    )
    experiments = [trained(run, options, _say)[0] for run in opened]
    for experiment in experiments:
        Pair.of(experiment.model, experiment.guide).to(device)
    if options.beside:
        print(run_folder.shown(_side_by_side(path, opened, experiments, options)))
        return
    for each in _pictures(opened[0], experiments[0], options.seed, options.pages):
        print(run_folder.shown(each))


@execute.register
def list_parts(options: List) -> None:
    """Show the parts of one slot or of all."""
    if options.slot is not None and options.slot not in lookup.NAMESPACES:
        raise UserError(did_you_mean("slot", options.slot, lookup.NAMESPACES))
    slots = list(lookup.NAMESPACES) if options.slot is None else [options.slot]
    listed = {slot: parts.describe(slot) for slot in slots}
    if options.json:
        print(
            json.dumps(
                {slot: [asdict(part) for part in found] for slot, found in listed.items()}, indent=2
            )
        )
        return
    columns = shutil.get_terminal_size((LIST_WIDTH, 0)).columns
    wrap = partial(textwrap.wrap, break_on_hyphens=False, break_long_words=False)
    for slot, found in listed.items():
        print(slot)
        names = max((len(part.name) for part in found), default=0)
        width = max(LEAST_TEXT, columns - names - 4)
        for part in found:
            lines = [*wrap(part.summary, width), *wrap(part.arguments, width)]
            for name, line in zip_longest([part.name], lines, fillvalue=""):
                print(f"  {name:{names}}  {line}".rstrip())


@execute.register
def run_benchmarks(options: Bench) -> None:
    """Run the benchmarks of the checkout."""
    results = bench.run(options)
    if options.json:
        print(json.dumps(results, ensure_ascii=False))


# ---------------------------------------------------------------------------------------------------------------------
# What they share


def _outcome(
    experiment: Experiment, options: Evaluate, steps: int
) -> evaluation_methods.Outcome | None:
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


def _evaluation(run: Run, options: Train, method: Literal["iw", "refine"]) -> Evaluate:
    """The evaluation that ends a training."""
    return Evaluate(
        run.folder,
        method=method,
        num_samples=options.num_samples,
        num_images=options.eval_images,
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        quiet=options.quiet,
    )


def _keep(
    run: Run, experiment: Experiment, found: evaluation_methods.Outcome, options: Evaluate
) -> None:
    """Write an evaluation into the run's folder, the figures first: each file appears whole or not
    at all.
    """
    run.add_result(evaluations=[{"split": found.split, **found.figures}])
    try:
        _keep_images(run, experiment, found, options.pictures, options.device)
    except Stopped as stopped:
        stopped.kept = f"the result is in {run_folder.shown(run.results_file)}"
        raise


def _keep_images(
    run: Run, experiment: Experiment, found: evaluation_methods.Outcome, pictures: bool, device: str
) -> None:
    """The per-image figures as a table and for `compare`, and the page of plots, where there are
    such figures.
    """
    from pyro_vae.evaluation.result_files import save_estimate

    if found.estimate is None or found.x is None:
        return
    save_estimate(
        run.estimate_file(found.figures["method"], found.split), found.estimate, run.trained()
    )
    found.estimate.to_csv(run.per_image_file)
    if pictures:
        found.estimate.plot(run.folder / "evaluation.png", *_shown(experiment, found, device))


def _shown(
    experiment: Experiment, found: evaluation_methods.Outcome, device: str
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The images for the page of plots and their reconstructions; none of a table."""
    assert found.x is not None
    if experiment.data.table:
        return None, None
    fields = experiment.fields(found.split, len(found.x))
    shown = reconstruct(experiment.model, experiment.guide, found.x, device=device, **fields)
    fitting = (each for each in shown.values() if each[0].numel() == found.x[0].numel())
    return found.x, next(fitting, None)


def _stored(run: Run, options: Compare) -> LogMarginal | None:
    """The run's latest estimate of the kind that is asked for, of its present parameters."""
    from pyro_vae.evaluation.result_files import load_estimate

    ll = load_estimate(run.estimate_file(options.method, options.split), run.trained(_say))
    if not isinstance(ll, LogMarginal) or options.num_images not in (None, ll.num_images):
        return None
    return ll if options.num_samples in (None, ll.num_samples) else None


def _evaluated(run: Run, options: Compare, number: int | None) -> LogMarginal:
    """A fresh estimate, which is added to the run."""
    if not options.quiet:
        _say(f"evaluating {run}")
    evaluation = Evaluate(
        run.folder,
        method=options.method,
        num_samples=options.num_samples,
        num_images=number,
        split=options.split,
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        quiet=options.quiet,
    )
    experiment, steps = trained(run, options, _say)
    found = _outcome(experiment, evaluation, steps)
    assert found is not None and found.estimate is not None
    _keep(run, experiment, found, evaluation)
    return found.estimate


def _pictures(
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


def _side_by_side(
    path: Path, opened: list[Run], experiments: list[Experiment], options: Plot
) -> Path:
    """One picture of all runs, a column each, under the folders' names."""
    from pyro_vae.plots import pages as plotting

    names = [run.folder.resolve().name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run) for run in opened]
    subjects = {
        name: plotting.subject_of(
            each.model,
            each.guide,
            each.observed,
            each.data,
            run.rows(),
            options.seed,
            options.device,
        )
        for name, run, each in zip(names, opened, experiments, strict=True)
    }
    return plotting.write_beside(path, subjects, options.pages or None)


def _picture_file(out: Path) -> Path:
    """A new .png file's path, as given with ``--out``."""
    path = out.expanduser()
    if path.exists():
        raise UserError(f"--out {out} exists: give another name")
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {out}: a picture's name ends in .png")
    return path


def _print_result(run: Run, result: dict[str, Any], headline: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(run_folder.finite({**result, "run": str(run)}), ensure_ascii=False))
    else:
        print(headline)
        print(f"run: {run}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
