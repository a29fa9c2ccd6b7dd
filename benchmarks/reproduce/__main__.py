"""Train, score and tabulate the cells of published tables; what is done is not done again, what was
stopped goes on.

python -m benchmarks.reproduce iwae --data-root data --budget "30 passes"

Without --budget the schedule is the published one. A budget is a set of results of its own, in
folders and files of its own. Exit codes are those of `pyro-vae`; 1 as well where a cell could not
be run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.harness import RESULTS
from benchmarks.reproduce import figures, results, tables
from benchmarks.reproduce.budget import Budget, read_budget
from benchmarks.reproduce.cells import Cell, Place, cell, cells_of
from benchmarks.reproduce.tables import TABLES, Picture
from benchmarks.reproduce.work import Child, Job, work
from pyro_vae.errors import UserError
from pyro_vae.signals import DONE, FAILED, MISTAKEN, Stopped, stopping


@dataclass(frozen=True)
class Reproduce:
    """What is run, for how long, and where."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Tables (iwae, aevb-figure2, …) or cells (burda-l1-k1, …); by default all tables."""
    budget: str | None = None
    """Shorten every training: "30 passes", "20000 steps" or "10%"; by default the published
    schedule.
    """
    samples: int | None = None
    """With a budget: K, instead of the published one."""
    images: int | None = None
    """With a budget: so many test images, instead of all."""
    seed: int = 0
    """Another seed is another set of results."""
    data_root: Path | None = None
    """Where MNIST and frey_faces.npz are; by default $PYRO_VAE_DATA, else ./data."""
    out: Path = Path("runs/reproduce")
    """The run folders: OUT/BUDGET/CELL."""
    results: Path = RESULTS
    """Where reproduce_TABLE.json and the pictures go."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "inductor", "graph", "off"] = "auto"
    """How a training step is run, as in `pyro-vae train`."""
    jobs: int = 1
    """Cells at a time: several share a GPU."""
    plan: bool = False
    """Only tell the steps of each cell."""
    report: bool = False
    """Only write the tables from what has been run."""
    quiet: bool = False
    """No progress bars."""


def run(options: Reproduce, start: Callable[[Sequence[str]], Job] = Child) -> int:
    """The whole command; the exit code.

    Raises:
        UserError: a bad name or budget, or results there of another budget.
        Stopped: by a signal, once the tables have been written.
    """
    wanted = tables.chosen(options.names)
    budget = read_budget(options.budget, options.samples, options.images, options.seed)
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: expected a whole number, 1 or more")
    place = Place(options.out, options.data_root, options.device, options.compile, options.quiet)
    for name in wanted:  # told before the work, not after
        results.read(results.result_file(options.results, name, budget), name, budget.label)
    made, failed = _make(
        list(dict.fromkeys(name for names in wanted.values() for name in names)), budget, place
    )
    if options.plan:
        print(plan(made, failed))
        return DONE

    def write_tables(of: Cell | None = None) -> None:
        for name in wanted:
            if of is None or of.name in TABLES[name].cells:
                found = results.tabulate(
                    TABLES[name], cells_of(TABLES[name], made.values()), budget, failed
                )
                results.write(results.result_file(options.results, name, budget), found)

    try:
        if not options.report:
            reasons = work(made.values(), start, options.jobs, write_tables)
            failed |= {name: _without_places(why, place) for name, why in reasons.items()}
    finally:
        write_tables()
    for name in wanted:
        for picture in TABLES[name].pictures:
            _draw(picture, made, budget, options)
        held = json.loads(
            results.result_file(options.results, name, budget).read_text(encoding="utf-8")
        )
        print(results.markdown(held))
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr)
    return FAILED if failed else DONE


def _make(
    names: Sequence[str], budget: Budget, place: Place
) -> tuple[dict[str, Cell], dict[str, str]]:
    """The cells by name, and the reasons of those whose data are not there."""
    made, failed = {}, {}
    for name in names:
        try:
            made[name] = cell(name, budget, place)
        except UserError as mistake:
            failed[name] = _without_places(str(mistake), place)
    return made, failed


def _without_places(words: str, place: Place) -> str:
    """A reason as it may stand in a table: without the names of this machine's folders."""
    for name, folder in (("DATA_ROOT", place.data_root), ("OUT", place.out)):
        if folder is not None:
            words = words.replace(str(folder.resolve()), name).replace(str(folder), name)
    return words


def plan(made: Mapping[str, Cell], failed: Mapping[str, str]) -> str:
    """The steps of each cell, as published and under the budget, and how far it is."""
    lines = [
        "| cell | steps published | steps here | images a step | done |",
        "|---|---|---|---|---|",
    ]
    for name, each in made.items():
        rows = each.run.rows() if each.begun else []
        done = "complete" if each.trained else rows[-1]["step"] if rows else 0
        lines.append(
            f"| {name} | {each.whole} | {each.steps} | {each.options.batch_size} | {done} |"
        )
    lines += [f"| {name} | | | | {why} |" for name, why in failed.items()]
    return "\n".join(lines)


def _draw(
    picture: Picture, made: Mapping[str, Cell], budget: Budget, options: Reproduce
) -> Path | None:
    """The picture, where the runs that it shows are there."""
    path = results.result_file(options.results, picture.name, budget, "png")
    if picture.draw:
        figure = figures.DRAW[picture.draw](made, budget.label)
        return None if figure is None else figures.save(figure, path)
    there = [made[name] for name in picture.cells if name in made and made[name].trained]
    if len(there) < len(picture.cells):
        return None
    return figures.pages(path, there, picture.pages)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = tyro.cli(
        Reproduce, args=given, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        with stopping():
            return run(options)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return MISTAKEN
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
