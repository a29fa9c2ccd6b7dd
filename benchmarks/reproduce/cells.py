"""A cell's run folder: what is left to do there, and what came out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyro_vae as pv
from benchmarks.harness import machine
from benchmarks.reproduce.budget import Budget, full_steps
from benchmarks.reproduce.tables import TABLES, Row, Table
from pyro_vae.data import datasets as image_data
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.evaluation.result_files import load_estimate, save_estimate
from pyro_vae.files import write_atomically
from pyro_vae.runs.config_file import to_toml, train_from
from pyro_vae.runs.experiment import Experiment, prepare
from pyro_vae.runs.options import Train
from pyro_vae.runs.run import Run

RECORD = "reproduce.json"
"""What this harness adds to a run's folder."""


@dataclass(frozen=True)
class Place:
    """Where the runs are, and where and how they are computed: nothing of what is computed."""

    out: Path
    data_root: Path | None = None
    device: str = "auto"
    compile: Literal["auto", "inductor", "graph", "off"] = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class Cell:
    """A configuration under a budget, and its run's folder ``OUT/LABEL/NAME``."""

    name: str
    options: Train
    whole: int  # steps of the published training
    budget: Budget
    place: Place
    units: bool = False
    ais_images: int = 0
    em_iterations: int = 0

    @property
    def run(self) -> Run:
        """The folder, whether it is there or not."""
        return Run(self.place.out / self.budget.label / self.name)

    @property
    def steps(self) -> int:
        """Of the training under the budget."""
        return self.options.steps if self.options.steps is not None else self.whole

    @property
    def begun(self) -> bool:
        """Whether there is a run; a ``UserError`` where it is one of other options."""
        if not self.run.config_file.is_file():
            return False
        self.run.refuse_other_options(self.options)
        return True

    @property
    def trained(self) -> bool:
        """Whether the run is complete: trained and scored."""
        results = self.run.results() if self.begun else {}
        return bool(results.get("training") and results.get("evaluations"))

    def next_command(self) -> list[str] | None:
        """The arguments of `pyro-vae` that come next, or None where its commands are done."""
        if not self.trained:
            return self._resume() if self.begun else self._train()
        if self.ais_images and self.estimate("ais") is None:
            number = min(self.ais_images, self.options.eval_images or self.ais_images)
            given = [
                "--method",
                "ais",
                "--num-images",
                str(number),
                "--no-pictures",
                "--seed",
                str(self.options.seed),
            ]
            return ["evaluate", str(self.run.folder), *given, *self._where()]
        return None

    def _train(self) -> list[str]:
        config = self.run.folder.parent / "configs" / f"{self.name}.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config, to_toml(self.options))
        return ["train", "--config", str(config), "--out", str(self.run.folder), *self._where()]

    def _resume(self) -> list[str]:
        return ["train", "--resume", str(self.run.folder), *self._where()]

    def _where(self) -> list[str]:
        place = self.place
        given = ["--device", place.device, "--compile", place.compile]
        given += ["--data-root", str(place.data_root)] if place.data_root is not None else []
        return [*given, *(["--quiet"] if place.quiet else [])]

    def estimate(self, method: str = "iw") -> LogMarginal | None:
        """The stored log p(x) of each test image by this method, of the run's present parameters."""
        return (
            load_estimate(self.run.estimate_file(method, "test"), self.run.trained())
            if self.trained
            else None
        )

    # ---- what `pyro-vae` itself does not do

    def finish(self) -> None:
        """Active units and the machine, into the run's folder; the mixture by EM. Nothing that is
        there is done again.
        """
        if self.record.get("of") != self.run.trained():
            held: dict[str, Any] = {"of": self.run.trained(), "machine": machine()}
            if self.units:
                held["active_units"] = active_units(self.run, self.experiment(), self.place.device)
            write_atomically(self.run.folder / RECORD, (json.dumps(held, indent=2) + "\n").encode())
        if self.em_iterations and self.estimate("em") is None:
            ll = by_em(self.experiment(), self.em_iterations)
            save_estimate(self.run.estimate_file("em", "test"), ll, self.run.trained())

    @property
    def record(self) -> dict[str, Any]:
        """What `finish` wrote."""
        path = self.run.folder / RECORD
        held: dict[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        )
        return held

    def experiment(self) -> Experiment:
        """Data and untrained parts."""
        return prepare(replace(self.options, data_root=self.place.data_root))


def cell(name: str, budget: Budget, place: Place) -> Cell:
    """The cell of that name, with all that the tables that have it want of it.

    Raises:
        UserError: its data are not there, or the budget is longer than its training.
    """
    having = [(table, row) for table in TABLES.values() for row in table.rows if row.cell == name]
    published = replace(
        train_from(having[0][1].config),
        data_root=place.data_root,
        device=place.device,
        compile=place.compile,
    )
    num_train, num_test = _sizes(published.data, place.data_root, published.data_seed)
    options = budget.options(published, num_train, num_test)
    options.check()
    return Cell(
        name,
        options,
        full_steps(published, num_train),
        budget,
        place,
        units=any(table.units for table, _ in having),
        ais_images=max(table.ais_images for table, _ in having),
        em_iterations=max(row.em_iterations for _, row in having),
    )


@lru_cache
def _sizes(name: str, data_root: Path | None, seed: int) -> tuple[int, int]:
    """Images in the training and in the test set, read once a set."""
    found = image_data.load(name, data_root, seed=seed)
    return len(found.train), len(found.test)


def active_units(run: Run, experiment: Experiment, device: str) -> dict[str, int]:
    """Units with Var_x(E_q[u]) > 0.01 on the test images, by site (Burda et al. 2016, section 5.2)."""
    model, guide = pv.load(run.folder)
    x, _ = experiment.images("test", experiment.options.eval_images)
    fields = experiment.fields("test", experiment.options.eval_images)
    # of the rest, the mutual information is what costs: each z under every image's q, for a flow an
    # inversion each
    found = pv.diagnose(model, guide, x, information_images=2, device=device, **fields).units.active
    return {name: int(each.sum()) for name, each in found.items()}


def by_em(experiment: Experiment, num_iterations: int) -> LogMarginal:
    """log p(x) of the test images, exact, under the cell's model fitted by EM instead of by
    gradients.
    """
    observe, x = experiment.observed.observe, experiment.x_train
    x = x if observe is None else observe.fixed(x, experiment.options.seed, "em")
    experiment.model.fit_em(x, num_iters=num_iterations)
    number = experiment.options.eval_images
    test, words = experiment.images("test", number)
    protocol = {**words, **experiment.protocol(0), "objective": f"EM, {num_iterations} iterations"}
    return pv.log_marginal(
        experiment.model,
        experiment.guide,
        test,
        num_samples=1,
        protocol=protocol,
        bits_offset=experiment.observed.bits_offset,
        device="cpu",
        progress=False,
    )


def row_estimate(cell: Cell, row: Row) -> LogMarginal | None:
    """What the row's figures are of."""
    return cell.estimate("em" if row.em_iterations else "iw")


def cells_of(table: Table, found: Iterable[Cell]) -> dict[str, Cell]:
    """The table's cells among those that could be made, by name."""
    return {each.name: each for each in found if each.name in table.cells}
