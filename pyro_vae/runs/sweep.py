"""A sweep: trainings that differ by a few options, each a run folder of its own, and their ranking.

A cell whose folder has a finished run is not run again, one that was cut short is resumed: the same
call, or command, goes on with a sweep that was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyro_vae.errors import UserError
from pyro_vae.formatting import Printed
from pyro_vae.runs.command_options import Evaluate
from pyro_vae.runs.config_file import plain, typed
from pyro_vae.runs.executors import find_pool, run_all
from pyro_vae.runs.grid import Cell, cells, read_grid
from pyro_vae.runs.options import FREE_ON_RESUME, Train
from pyro_vae.runs.ranking import Ranking, Scored, best, rank
from pyro_vae.runs.sweep_options import OUT
from pyro_vae.signals import Failure
from pyro_vae.table import Table

NO_SCORE = "trained, but its guide gives no log p(x) of each test image by importance sampling"


@dataclass(frozen=True)
class Outcome:
    """The result of one cell: a run folder, or a sentence that says why there is none."""

    cell: Cell
    folder: Path
    failed: str = ""


@dataclass(frozen=True)
class Sweep(Printed):
    """The result of `sweep`: the outcome of each cell, and `rankings` of those that were scored."""

    outcomes: tuple[Outcome, ...]

    @property
    def scored(self) -> list[Scored]:
        """The cells that have log p(x) of each test image."""
        found = [score_of(each) for each in self.outcomes if not each.failed]
        return [each for each in found if each is not None]

    @property
    def rankings(self) -> list[Ranking]:
        """A ranking for each quantity, kind and data set; what can't be compared is in separate
        ones.
        """
        return rank(self.scored)

    def tables(self) -> list[Table]:
        """A table for each ranking, then one of the cells that are in none, and why."""
        scored = self.scored
        ranked = {cell.name for cell in scored}
        lost = [each for each in self.outcomes if each.cell.name not in ranked]
        rows = tuple((each.cell.name, each.failed or NO_SCORE) for each in lost)
        tables = [ranking.table() for ranking in rank(scored)]
        return [*tables, Table(("cell", "not ranked"), rows)] if rows else tables

    def table(self) -> Table:
        """The one table of a sweep whose cells can all be compared.

        Raises:
            UserError: there are none, or several (`tables` has them all).
        """
        found = [ranking.table() for ranking in self.rankings]
        if len(found) != 1:
            raise UserError(
                f"this sweep has {len(found)} rankings, because not all of its cells can be "
                "compared: use tables(), which returns all of them"
            )
        return found[0]

    def best(self) -> Scored:
        """The cell with the most log p(x) on the validation images; its ``test`` is the number to
        report.
        """
        return best(self.scored)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self.tables())


def sweep(
    grid: Path | str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    out: Path | str = OUT,
    jobs: int = 1,
    on: str = "here",
    tell: Callable[[str], None] = print,
    **options: Any,
) -> Sweep:
    """Train and score every cell of a grid of options, and rank the cells by log p(x).

    A cell whose run is finished is not run again; one that was stopped is resumed.

    Example::

        grid = {"guide": ["MeanField", "IAF"], "seed": [0, 1], "steps": 2000}
        print(pv.sweep(grid, out="runs/guides").table())

    Args:
        grid: a TOML file (`pyro_vae.runs.grid`), or its content: option -> value or list of values,
            which are combined; or several such tables.
        out: the folder for the cells' run folders. Workers on other machines must share it.
        jobs: cells at a time; they share the threads.
        on: ``here``, or the address of a Dask scheduler, ``tcp://host:8786``.
        tell: called with one line about each cell that ends.
        **options: options of `pyro-vae train` for all cells. They win over those of the grid; lists
            are combined too.

    Returns:
        A `Sweep`, in the grid's order: ``.table()``, ``.best``, ``.rankings``.

    Raises:
        UserError: the grid is wrong; nothing was trained.
    """
    every, folder = planned(grid, options), Path(out).expanduser()
    check_folders(every, folder)
    pieces = [as_piece(cell, folder, number, jobs) for number, cell in enumerate(every)]
    outcomes: dict[int, Outcome] = {}
    for number, result in run_all(run_cell, pieces, jobs, find_pool(on)):
        failed = str(result["failed"] if isinstance(result, dict) else result)
        failed = " ".join(failed.split())
        outcomes[number] = Outcome(every[number], folder / every[number].name, failed)
        tell(f"{every[number].name}: {failed or 'done'} ({len(outcomes)} of {len(every)})")
    return Sweep(tuple(outcomes[number] for number in range(len(every))))


def planned(grid: Any, options: Mapping[str, Any]) -> list[Cell]:
    """The cells of a grid file, or of what it would have."""
    tables = (
        read_grid(Path(grid))
        if isinstance(grid, str | Path)
        else [dict(grid)]
        if isinstance(grid, Mapping)
        else [dict(table) for table in grid]
    )
    of = str(grid) if isinstance(grid, str | Path) else "sweep"
    return cells([{**table, **options} for table in tables], of)


def check_folders(every: Sequence[Cell], out: Path) -> None:
    """A ``UserError`` where a cell's folder has a run of other options."""
    from pyro_vae.runs import run_folder

    for cell in every:
        folder = out / cell.name
        if not (folder / "config.toml").is_file():
            if cell.options.init_from is not None:
                run_folder.open_run(cell.options.init_from)
            continue
        run_folder.open_run(folder).refuse_other_options(cell.options)


def as_piece(cell: Cell, out: Path, number: int, jobs: int) -> dict[str, Any]:
    """What `run_cell` takes: plain values, which travel to any process."""
    device = cell.options.device
    if device == "cuda" and jobs > 1:
        import torch

        device = f"cuda:{number % max(1, torch.cuda.device_count())}"
    options = {**plain(cell.options), "device": device, "pictures": False}
    return {"options": options, "folder": str((out / cell.name).absolute()), "jobs": jobs}


def run_cell(piece: Mapping[str, Any]) -> dict[str, Any]:
    """Bring one cell to its end: begin it, resume it, or leave it, if it is done. A mistake or a
    failure of its own is its one line, ``failed``.
    """
    import torch

    before = torch.get_num_threads()
    folder = Path(piece["folder"])
    options = Train(**typed(piece["options"], "sweep"), quiet=True)
    torch.set_num_threads(max(1, before // piece["jobs"]))
    try:
        bring_to_its_end(options, folder)
    except (UserError, Failure, OSError, MemoryError) as error:
        return {"failed": str(error) or type(error).__name__}
    finally:
        torch.set_num_threads(before)
    return {"failed": ""}


def bring_to_its_end(options: Train, folder: Path) -> None:
    """Train and score the cell's test images, then count its active units and score its validation
    images, from where it is.
    """
    from pyro_vae.runs import run_folder
    from pyro_vae.runs.evaluate import keep, outcome
    from pyro_vae.runs.run_data import trained
    from pyro_vae.runs.train import is_complete, train_run

    if not (folder / "config.toml").is_file():
        train_run(replace(options, out=folder), _unheard)
    run = run_folder.open_run(folder)
    if not is_complete(run):
        free = {name: getattr(options, name) for name in FREE_ON_RESUME}
        train_run(replace(run.options(), **free, resume=folder, quiet=True), _unheard)
    scored = run.estimate_file("iw", "test").is_file()
    counted = "active_units" in run.results()
    done = not options.valid_fraction or run.estimate_file("iw", "valid").is_file()
    if not scored or (counted and done):
        return
    own = {"num_images": options.eval_images, "quiet": True}
    evaluation = Evaluate.like(options, folder, split="valid", **own)
    experiment, steps = trained(run, evaluation, _unheard)
    if not counted:
        run.add_result(active_units=_active_units(experiment, options.device))
    if not done and (found := outcome(experiment, evaluation, steps)) is not None:
        keep(run, found)


MOST_DIAGNOSED = 500
"""Test images by which active units are counted."""


def _active_units(experiment: Any, device: str) -> list[int] | None:
    """How many units of the latent are active, and how many there are; None where the guide has no
    means that tell.
    """
    from pyro_vae.analysis.diagnose import active_units

    number = min(MOST_DIAGNOSED, len(experiment.observed.x_test))
    x, fields = experiment.images("test", number)[0], experiment.fields("test", number)
    try:
        units = active_units(experiment.model, experiment.guide, x, device=device, **fields)
    except UserError:
        return None
    return [units.count, units.num_units]


def _unheard(line: str) -> None:
    """What a run says on its way; a sweep says how each cell ends."""


def score_of(outcome: Outcome) -> Scored | None:
    """What a finished cell's folder says of it; None where it has no log p(x) of each image."""
    from pyro_vae.evaluation.result_files import load_estimate
    from pyro_vae.runs import run_folder

    run = run_folder.open_run(outcome.folder)
    trained = run.trained()
    test = load_estimate(run.estimate_file("iw", "test"), trained)
    if test is None:
        return None
    results = run.results()
    return Scored(
        name=outcome.cell.name,
        method=outcome.cell.method,
        seed=outcome.cell.options.seed,
        test=test,
        valid=load_estimate(run.estimate_file("iw", "valid"), trained),
        seconds=float(results.get("training", {}).get("seconds", float("nan"))),
        active_units=tuple(results.get("active_units") or ()),
    )
