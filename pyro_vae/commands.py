"""What each command does, once its options are read and checked: the part of the command line that needs torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch

from pyro_vae import methods, registry, runs
from pyro_vae.batches import make_source
from pyro_vae.callbacks import EarlyStopping
from pyro_vae.devices import find_device
from pyro_vae.endings import Failure, Stopped
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.experiment import Experiment, dry_run, prepare
from pyro_vae.history import History
from pyro_vae.marginal import LogMarginal
from pyro_vae.objectives import Loss
from pyro_vae.options import Compare, Evaluate, List, Plot, Sample, Train
from pyro_vae.pair import Pair
from pyro_vae.representation import reconstruct
from pyro_vae.runs import Recorder, Run
from pyro_vae.training import Diverged, evaluate_elbo, fit

WIDTH = 110
"""Of the lines of `list`."""


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
    device = find_device(options.device)
    if options.out is not None:
        runs.refuse_taken(options.out)
    experiment = prepare(options)
    experiment.images("test", options.eval_images)  # too many are told before the training, not after
    structure = dry_run(experiment, device)
    run = runs.create(options.out, runs.run_name(options))
    history = _fit(experiment, run, device)
    run.add_result(
        training={
            "steps": history.num_steps,
            "epochs": len(history.train),
            "seconds": round(history.seconds, 3),
            "compile": history.compile,
            "note": history.note,
            "stopped": history.stopped,
        }
    )
    if not options.quiet:
        _say(str(history) + (f"; ended by {history.stopped}" if history.stopped else ""))
    try:
        if structure.point_masses:
            result, headline = _reconstruction_error(experiment, device, history, structure.point_masses[0])
        else:
            found = methods.evaluate(experiment, _evaluation(run, options), history.num_steps)
            result, headline = found.figures, found.headline
        run.add_result(evaluations=[{"split": "test", **result}])
        if not structure.point_masses:
            _keep_images(run, experiment, found, options.pictures, options.device)
        if options.pictures:
            _pictures(run, experiment)
    except Stopped as stopped:
        stopped.kept = f"the trained pair is kept: pyro-vae evaluate {run}"
        raise
    _print_result(run, result, headline, options.json)


def _fit(experiment: Experiment, run: Run, device: torch.device) -> History:
    """Train; a checkpoint is written at the end, or where a signal stops it."""
    options = experiment.options
    recorder = Recorder(
        run,
        experiment.model,
        experiment.guide,
        {"event_shape": list(experiment.data.event_shape), "num_data": len(experiment.train_rows)},
    )
    stopping = [EarlyStopping(options.early_stopping)] if options.early_stopping is not None else []
    try:
        run.begin(options, device)
        history = fit(
            experiment.model,
            experiment.guide,
            experiment.x_train,
            objective=options.objective,
            num_epochs=options.epochs or 1,
            num_steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            optimizer=options.optimizer,
            schedule=options.schedule,
            kl_weight=options.kl_weight,
            kl_warmup=options.kl_warmup,
            grad_clip=options.grad_clip,
            callbacks=[*stopping, recorder],
            binarize=experiment.observed.observe,
            x_valid=experiment.stored_valid,
            seed=options.seed,
            device=device,
            compile=options.compile,
            progress=not options.quiet,
        )
        recorder.save()
    except UserError:
        if not recorder.epoch:
            run.discard()
        raise
    except Diverged as error:
        raise Failure(f"{error} (run: {run})") from error
    except Stopped as stopped:
        path = recorder.save(suffix="-stopped")
        stopped.kept = f"checkpoint after {recorder.epoch} whole epochs: {runs.shown(path)}"
        raise
    return history


def _reconstruction_error(
    experiment: Experiment, device: torch.device, history: History, site: str
) -> tuple[dict[str, Any], str]:
    """−log p(x | z) of the test images, for a guide that has no density."""
    pair = Pair.of(experiment.model, experiment.guide)
    loss = Loss(registry.build("objective", "Trace_ELBO"), pair).to(device)
    x, words = experiment.images("test", experiment.options.eval_images)
    record = evaluate_elbo(loss, make_source(x, {}, 500, device), experiment.options.seed)
    why = (
        f"the guide's site {site!r} is a point mass, which has no density: no importance weights, and no log p(x); "
        "swap in a guide with a density, such as MeanField"
    )
    error = -record.reconstruction
    result = {
        "reconstruction_error": error,
        "num_images": len(x),
        "mean": None,
        "protocol": {**words, **experiment.protocol(history.num_steps)},
        "warnings": [why],
    }
    return result, f"reconstruction error −log p(x | z): {error:.2f} nats an image (N = {len(x)})\n  {why}"


# ---------------------------------------------------------------------------------------------------------------------
# evaluate, compare, sample, plot, list


@execute.register
def evaluate(options: Evaluate) -> None:
    """Estimate log p(x) again, and add it to the run's results."""
    find_device(options.device)
    run = runs.open_run(options.run)
    run.results()  # damaged results are told before the work, not after
    experiment, steps = _trained(run, options.data_root)
    try:
        found = methods.evaluate(experiment, options, steps)
    except Stopped as stopped:
        stopped.kept = "nothing was added to the run"
        raise
    _keep(run, experiment, found, options)
    _print_result(run, found.figures, found.headline, options.json)


@execute.register
def compare_runs(options: Compare) -> None:
    """Paired differences between runs, from what they have stored."""
    from pyro_vae.comparison import compare

    find_device(options.device)
    opened = [runs.open_run(folder) for folder in options.runs]
    stored = {str(run): _stored(run, options) for run in opened}
    number = options.num_images
    if number is None:
        number = next((ll.num_images for ll in stored.values() if ll is not None), None)
    for run in opened:
        if stored[str(run)] is None:
            stored[str(run)] = _evaluated(run, options, number)
    result = compare({name: ll for name, ll in stored.items() if ll is not None})
    print(json.dumps(runs.finite(result.to_dict()), ensure_ascii=False) if options.json else result)


@execute.register
def sample(options: Sample) -> None:
    """Draw images into one picture."""
    find_device(options.device)
    run = runs.open_run(options.run)
    if options.out is not None and options.out.expanduser().exists():
        raise UserError(f"--out {options.out} exists: give another name")
    path = options.out.expanduser() if options.out is not None else run.folder / "samples.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {options.out}: a picture's name ends in .png")
    model, guide, held = run.load_pair()
    from pyro_vae import plotting

    shape = tuple(held.metadata["event_shape"])
    wanted = {"guide": guide, "device": options.device}
    print(runs.shown(plotting.samples_picture(model, shape, options.number, path, options.seed, **wanted)))


@execute.register
def plot(options: Plot) -> None:
    """Draw the run's pictures again."""
    device = find_device(options.device)
    run = runs.open_run(options.run)
    experiment, _ = _trained(run, options.data_root)
    Pair.of(experiment.model, experiment.guide).to(device)
    for path in _pictures(run, experiment, options.seed, options.pages):
        print(runs.shown(path))


@execute.register
def list_parts(options: List) -> None:
    """Show the parts of one slot or of all."""
    if options.slot is not None and options.slot not in registry.NAMESPACES:
        raise UserError(did_you_mean("slot", options.slot, registry.NAMESPACES))
    slots = list(registry.NAMESPACES) if options.slot is None else [options.slot]
    parts = {slot: registry.describe(slot) for slot in slots}
    if options.json:
        print(json.dumps({slot: [asdict(part) for part in found] for slot, found in parts.items()}, indent=2))
        return
    for slot, found in parts.items():
        print(slot)
        width = max((len(part.name) for part in found), default=0)
        for part in found:
            print(f"  {part.name:{width}}  {_shortened(part.summary, WIDTH - width - 4)}".rstrip())


# ---------------------------------------------------------------------------------------------------------------------
# What they share


def _trained(run: Run, data_root: Path | None) -> tuple[Experiment, int]:
    """A run's experiment with the trained model and guide in it, and the steps that they were trained for."""
    from dataclasses import replace

    options = run.options()
    model, guide, held = run.load_pair()
    experiment = prepare(replace(options, data_root=data_root) if data_root is not None else options)
    if list(experiment.data.event_shape) != held.metadata["event_shape"]:
        raise UserError(
            f"{options.data}: images of shape {tuple(experiment.data.event_shape)}, but {run} was trained on "
            f"{tuple(held.metadata['event_shape'])}: name the folder of its data with --data-root"
        )
    return replace(experiment, model=model, guide=guide), int(held.metadata.get("step", 0))


def _evaluation(run: Run, options: Train) -> Evaluate:
    """The evaluation that ends a training."""
    return Evaluate(
        run.folder,
        num_samples=options.num_samples,
        num_images=options.eval_images,
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        quiet=options.quiet,
    )


def _keep(run: Run, experiment: Experiment, found: methods.Outcome, options: Evaluate) -> None:
    """Write an evaluation into the run's folder, the figures first: each file appears whole or not at all."""
    run.add_result(evaluations=[{"split": found.split, **found.figures}])
    try:
        _keep_images(run, experiment, found, options.pictures, options.device)
    except Stopped as stopped:
        stopped.kept = f"the result is in {runs.shown(run.results_file)}"
        raise


def _keep_images(run: Run, experiment: Experiment, found: methods.Outcome, pictures: bool, device: str) -> None:
    """The per-image figures as a table and for `compare`, and the page of plots, where there are such figures."""
    from pyro_vae.stored import save_estimate

    if found.estimate is None or found.x is None:
        return
    save_estimate(run.estimate_file(found.figures["method"], found.split), found.estimate, run.trained())
    found.estimate.to_csv(run.per_image_file)
    if pictures:
        shown = reconstruct(experiment.model, experiment.guide, found.x, device=device)
        fitting = (each for each in shown.values() if each[0].numel() == found.x[0].numel())
        found.estimate.plot(run.folder / "evaluation.png", found.x, next(fitting, None))


def _stored(run: Run, options: Compare) -> LogMarginal | None:
    """The run's latest estimate of the kind that is asked for, of its present parameters."""
    from pyro_vae.stored import load_estimate

    ll = load_estimate(run.estimate_file(options.method, options.split), run.trained())
    if ll is None or options.num_images not in (None, ll.num_images):
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
    experiment, steps = _trained(run, options.data_root)
    found = methods.evaluate(experiment, evaluation, steps)
    _keep(run, experiment, found, evaluation)
    assert found.estimate is not None
    return found.estimate


def _pictures(run: Run, experiment: Experiment, seed: int = 0, pages: tuple[str, ...] = ()) -> list[Path]:
    """All pictures that fit the run, or the pages that are named."""
    from pyro_vae import plotting

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


def _print_result(run: Run, result: dict[str, Any], headline: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(runs.finite({**result, "run": str(run)}), ensure_ascii=False))
    else:
        print(headline)
        print(f"run: {run}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
