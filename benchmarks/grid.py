"""log p(x) of guides × objectives × priors: short runs of the same budget, scored on the same test
images.

python -m benchmarks.grid --data-root data --budget 4000 --guides MeanField FullRank --priors
StandardNormal VampPrior

The first guide, objective and prior are the baseline, to which every other cell is compared image
by image. A cell is a run folder under --out; cells that are done are not run again. One that
refuses its parts is a line of the table as well.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import Any

import pyro_vae as pv
from benchmarks.harness import RESULTS, machine, run_cli
from pyro_vae.cli.commands import execute
from pyro_vae.data import datasets as image_data
from pyro_vae.errors import UserError
from pyro_vae.evaluation.result_files import load_estimate
from pyro_vae.runs import run_folder
from pyro_vae.runs.options import Train, stored_names
from pyro_vae.signals import Failure


@dataclass(frozen=True)
class Grid:
    """What is crossed, and what every cell has in common."""

    guides: tuple[str, ...] = (
        "MeanField",
        "FullRank",
        "IAF(depth=2)",
        "Householder",
        "MixtureOfGaussians",
    )
    """q(z | x)."""
    objectives: tuple[str, ...] = ("TraceMeanField_ELBO", "IWAE(num_particles=5)")
    """What is maximised."""
    priors: tuple[str, ...] = ("StandardNormal",)
    """p(z)."""
    budget: int = 4000
    """Optimiser steps of a cell."""
    num_samples: int = 1000
    """K, the importance samples an image."""
    num_images: int = 500
    """Test images, the same for every cell."""
    data: str = "mnist"
    """A data set, as `pyro-vae train` takes it."""
    data_root: Path | None = None
    """Where its files are; by default $PYRO_VAE_DATA, else ./data."""
    latent_dim: int = 20
    """Dimensions of z."""
    net: str = "MLP"
    """The network of every part."""
    seed: int = 0
    """Of the parameters, the batches, the noise and the draws."""
    out: Path = Path("runs/grid")
    """The cells' run folders."""
    results: Path = RESULTS
    """Where grid.json and grid.md go."""

    @property
    def cells(self) -> list[Cell]:
        """All of them, the baseline first."""
        return [Cell(*parts) for parts in product(self.guides, self.objectives, self.priors)]


@dataclass(frozen=True)
class Cell:
    """One combination of parts."""

    guide: str
    objective: str
    prior: str

    @property
    def folder(self) -> str:
        """Its words, in letters that serve in a file's name."""
        return re.sub(r"[^\w.]+", "-", "-".join((self.guide, self.objective, self.prior))).strip(
            "-"
        )

    def options(self, grid: Grid) -> Train:
        """The training and the evaluation that it is."""
        return Train(
            data=grid.data,
            data_root=grid.data_root,
            guide=self.guide,
            objective=self.objective,
            prior=self.prior,
            latent_dim=grid.latent_dim,
            net=grid.net,
            steps=grid.budget,
            num_samples=grid.num_samples,
            eval_images=grid.num_images,
            valid_fraction=0.0,
            pictures=False,
            seed=grid.seed,
            device="cpu",
            quiet=True,
        )


@dataclass(frozen=True)
class Outcome:
    """A cell's run, or the sentence that refuses it."""

    cell: Cell
    estimate: pv.LogMarginal | None = None
    seconds: float = nan  # of the training
    refused: str = ""


def run(cell: Cell, grid: Grid) -> Outcome:
    """Train and score the cell, unless its folder has that already.

    Raises:
        UserError: its folder has a run of other options.
    """
    options, folder = cell.options(grid), grid.out / cell.folder
    if not folder.exists():
        try:
            options.check()
            # under another name until it is whole: a cell that was cut short is run again
            part = next(
                p for i in range(10_000) if not (p := grid.out / f".{cell.folder}.{i}").exists()
            )
            with redirect_stdout(sys.stderr):
                execute(replace(options, out=part))
            part.rename(folder)
        except (UserError, Failure) as reason:
            return Outcome(cell, refused=str(reason))
    done = run_folder.open_run(folder)
    held = done.options()
    for name in stored_names():
        if name != "data_root" and getattr(held, name) != getattr(options, name):
            raise UserError(
                f"{folder} holds a run with {name} = {getattr(held, name)!r}, not "
                f"{getattr(options, name)!r}: give another --out"
            )
    training = done.results()["training"]
    return Outcome(
        cell, load_estimate(done.estimate_file("iw", "test"), done.trained()), training["seconds"]
    )


def rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The figures of each cell, with its paired difference from the baseline, in nats per image."""
    baseline, table = outcomes[0].estimate, []
    for outcome in outcomes:
        row: dict[str, Any] = {**asdict(outcome.cell), "seconds": outcome.seconds}
        if (ll := outcome.estimate) is None:
            table.append(
                {
                    **row,
                    "refused": outcome.refused
                    or "trained, but has no log p(x) of each image to compare",
                }
            )
            continue
        names = ("mean", "se_mc", "se_total", "bias", "elbo", "high_khat")
        row |= {name: float(getattr(ll, name)) for name in names}
        if ll is not baseline and baseline is not None:
            row |= dict(zip(("difference", "se_difference"), difference(baseline, ll), strict=True))
        table.append({**row, "warnings": list(ll.warnings)})
    return table


def difference(baseline: pv.LogMarginal, ll: pv.LogMarginal) -> tuple[float, float]:
    """log p(x) less the baseline's, and its paired standard error, by `pyro_vae.compare` (which
    orders them).
    """
    worse = pv.compare({"baseline": baseline, "cell": ll}).rows[1]
    return worse.difference if worse.name == "cell" else -worse.difference, worse.se_difference


def markdown(table: list[dict[str, Any]], said: str) -> str:
    """The table and, below it, what its figures are of."""
    lines = [
        "| guide | objective | prior | log p(x) | ± MC | difference ± paired | ELBO | k̂ > 0.7 | "
        "training |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in table:
        parts = " | ".join(f"`{row[name]}`" for name in ("guide", "objective", "prior"))
        if "refused" in row:
            lines.append(f"| {parts} | {row['refused']} | | | | | |")
            continue
        paired = (
            f"{row['difference']:+.2f} ± {row['se_difference']:.2f}"
            if "difference" in row
            else "baseline"
        )
        heavy = "–" if isnan(row["high_khat"]) else f"{row['high_khat']:.0%}"
        figures = f"{row['mean']:.2f} | {row['se_mc']:.3f} | {paired} | {row['elbo']:.2f} | {heavy} | {row['seconds']:.0f} s"
        lines.append(f"| {parts} | {figures.replace('-', '−')} |")
    return "\n".join([*lines, "", said, ""])


def main(grid: Grid) -> None:
    """Run what is not yet done; the table is written after every cell."""
    data = image_data.load(
        grid.data, grid.data_root
    )  # a missing set is told once, not as a refusal of every cell
    common = {
        name: getattr(grid, name)
        for name in ("budget", "num_samples", "num_images", "latent_dim", "net", "seed")
    }
    said = f"{grid.budget} steps a cell, seed {grid.seed}; IW-{grid.num_samples} on the same {grid.num_images} test images "
    said += f"of {data.name} (data sha256 {data.sha256[:12]}…), nats an image; differences are paired, from the first row."
    grid.out.mkdir(parents=True, exist_ok=True)
    grid.results.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for cell in grid.cells:
        started = time.perf_counter()
        outcomes.append(run(cell, grid))
        print(f"{cell.folder}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        table = rows(outcomes)
        held = {
            "machine": machine(),
            "data": data.name,
            "data_sha256": data.sha256,
            **common,
            "cells": table,
        }
        (grid.results / "grid.json").write_text(
            json.dumps(run_folder.finite(held), indent=1, ensure_ascii=False) + "\n"
        )
        (grid.results / "grid.md").write_text(markdown(table, said))
    print(markdown(rows(outcomes), said))


if __name__ == "__main__":
    run_cli(main, Grid, __doc__)
