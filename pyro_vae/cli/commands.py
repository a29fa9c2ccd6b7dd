"""The commands themselves, after their options are read and checked; this part imports torch."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from functools import partial, singledispatch
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from pyro_vae import distributed
from pyro_vae.choices import lookup
from pyro_vae.cli import bench
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair
from pyro_vae.runs import listing, parts, preview, run_folder
from pyro_vae.runs import sweep as sweeping
from pyro_vae.runs.command_options import Audit, Compare, Evaluate, List, Plot, Runs, Sample
from pyro_vae.runs.evaluate import evaluate_run, evaluated, stored
from pyro_vae.runs.evaluation_methods import Outcome
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.options import Bench, Train
from pyro_vae.runs.run import Run, finite, shown
from pyro_vae.runs.run_data import trained
from pyro_vae.runs.sweep_options import Sweep
from pyro_vae.runs.train import train_run, write_pictures
from pyro_vae.signals import Failure

LIST_WIDTH, LEAST_TEXT = 120, 40
"""Columns of `list` where standard output is no terminal, and of its texts besides the names in a
terminal however narrow.
"""


@singledispatch
def execute(command: Any) -> None:
    """Run one command; its options have been checked."""
    raise TypeError(f"no such command: {type(command).__name__}")


# ------------------------------------------------------------------------------------------
# train


@execute.register
def train(options: Train) -> None:
    """Train, evaluate, and leave a run behind."""

    train_run(options, _say, partial(_print_result, options.json))


# ------------------------------------------------------------------------------------------
# evaluate, audit, compare, sample, plot, list


@execute.register
def evaluate(options: Evaluate) -> None:
    """Estimate log p(x) again, and add it to the run's results."""
    with distributed.begun(options.device):
        find_device(options.device)
        run = run_folder.open_run(options.run)
        found = evaluate_run(run, options, _say)
    if found is not None:
        _print_result(options.json, run, found)


@execute.register
def audit(options: Audit) -> None:
    """Write a script into the run that checks log weights by stock Pyro, and the source that it
    needs.
    """
    from pyro_vae.runs.audit import write_audit

    run = run_folder.open_run(options.run)
    script, copies = shown(run.folder / "audit.py"), write_audit(run, options, _say)
    print(
        f"{script} uses torch, pyro and copies of the pair's source. "
        "Compare the copies with the originals:"
    )
    for copy, original in copies.items():
        print(f"  {shown(copy)}  {shown(original)}")
    print(f"run it, with this package or without: python {script}")


@execute.register
def compare_runs(options: Compare) -> None:
    """Paired differences between runs, from what they have stored."""
    from pyro_vae.evaluation.compare import compare

    find_device(options.device)
    opened = [run_folder.open_run(folder) for folder in options.folders]
    held = {str(run): stored(run, options, _say) for run in opened}
    number = options.num_images
    if number is None:
        number = next((ll.num_images for ll in held.values() if ll is not None), None)
    for run in opened:
        found = held[str(run)]
        if found is None or number not in (None, found.num_images):
            held[str(run)] = evaluated(run, options, number, _say)
    result = compare({name: ll for name, ll in held.items() if ll is not None})
    _print_json(result.to_dict()) if options.json else print(result)


@execute.register
def sample(options: Sample) -> None:
    """Draw images into one picture."""
    find_device(options.device)
    run = run_folder.open_run(options.run)
    path = _picture_file(options.out, run.folder / "samples.png")
    with run.code(options.trust):
        model, guide, held = run.load_pair(tell=_say)
    from pyro_vae.plots import pages as plotting

    shape, y = tuple(held.metadata["event_shape"]), held.metadata.get("num_classes")
    wanted = {"guide": guide, "device": options.device, **_classes(model, options, y)}
    drawn = plotting.samples_picture(model, shape, options.number, path, options.seed, **wanted)
    print(shown(drawn))


def _classes(model: Any, options: Sample, num_classes: int | None) -> dict[str, torch.Tensor]:
    """The field ``y`` of the images to draw, for a model that names it: the class asked for, or all
    classes in turn.
    """
    if not Program("model", model).wants("y") or num_classes is None:
        if options.y is not None:
            raise UserError(f"--y {options.y}: the model of this run takes no class; leave --y out")
        return {}
    if options.y is not None and options.y >= num_classes:
        raise UserError(f"--y {options.y}: the classes are 0 to {num_classes - 1}")
    in_turn = torch.arange(options.number) % num_classes
    return {"y": in_turn if options.y is None else torch.full_like(in_turn, options.y)}


@execute.register
def plot(options: Plot) -> None:
    """Draw the run's pictures again, or those of several runs side by side."""
    device = find_device(options.device)
    opened = [run_folder.open_run(folder) for folder in (options.run, *options.beside)]
    path = _picture_file(options.out, opened[0].folder / "beside.png")
    experiments = [trained(run, options, _say)[0] for run in opened]
    for experiment in experiments:
        Pair.of(experiment.model, experiment.guide).to(device)
    if options.beside:
        print(shown(_side_by_side(path, opened, experiments, options)))
        return
    for each in write_pictures(opened[0], experiments[0], options.seed, options.pages):
        print(shown(each))


@execute.register(Sweep)
def sweep_runs(options: Any) -> None:
    """What the options ask for; a sweep in which every cell failed is a failure."""
    grid = options.grid if options.grid is not None else {}
    every = sweeping.planned(grid, options.given)
    if options.on == "print":
        print("\n".join(preview.commands(every, options.out)))
    elif options.dry_run:
        sweeping.check_folders(every, options.out)
        print(preview.preview(every, options.out))
    else:
        found = sweeping.sweep(
            grid,
            out=options.out,
            jobs=options.jobs,
            on=options.on,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
            **options.given,
        )
        print("\n\n".join(_as_asked(table, options.format) for table in found.tables()))
        if all(each.failed for each in found.outcomes):
            raise Failure("no cell was trained: see the lines above")


@execute.register
def list_runs(options: Runs) -> None:
    """Show the runs of a folder."""
    rows = listing.chosen(listing.runs_of(options.folder), options.where, options.sort)
    if options.json:
        _print_json(rows)
    elif options.csv:
        print(listing.whole_table(rows).to_csv(), end="")
    else:
        print(listing.as_table(rows) if rows else "no run matches")


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
        _print_json(results)


# ------------------------------------------------------------------------------------------
# What they share


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


def _picture_file(out: Path | None, default: Path) -> Path:
    """A new .png file's path, as given with ``--out``."""
    if out is None:
        return default
    if out.expanduser().exists():
        raise UserError(f"--out {out} exists already: give another name")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: a picture's name ends in .png")
    return out.expanduser()


def _print_json(value: Any) -> None:
    """On one line, with None for what is no finite number."""
    print(json.dumps(finite(value), ensure_ascii=False, default=str))


def _print_result(as_json: bool, run: Run, found: Outcome) -> None:
    if as_json:
        _print_json({**found.figures, "run": str(run)})
    else:
        print(found.headline)
        print(f"run: {run}", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _as_asked(table: Any, form: str) -> str:
    return str(table) if form == "text" else str(getattr(table, f"to_{form}")()).rstrip("\n")
