"""The ranking of a sweep's cells by log p(x) of the same test images, with two errors.

Two errors, as two questions are asked. *Over images*: are these trained models different? The
images' differences, averaged over the seeds, have a standard error (the seeds are what they are).
*Over seeds*: is one method better than the other? The seeds' mean differences have one, where there
are two seeds or more (Bouthillier et al. 2021, Accounting for variance in machine learning
benchmarks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from statistics import fmean, stdev

import torch

from pyro_vae.errors import UserError
from pyro_vae.evaluation.compare import compare
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.formatting import Printed, figure, quantity, shorten
from pyro_vae.table import Table

Method = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scored:
    """A cell that is trained and scored.

    ``valid`` is the estimate on the validation images, by which one is chosen; ``seconds`` are the
    training's; ``active_units`` are how many of how many, where that is known.
    """

    name: str
    method: Method
    seed: int
    test: LogMarginal
    valid: LogMarginal | None = None
    seconds: float = nan
    active_units: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One method: its cells, a seed each, and its difference from the first row, nats per image."""

    cells: tuple[Scored, ...]
    difference: float  # over the seeds that both have
    se_images: float  # of the difference, for these trained models
    se_seeds: float  # of the difference, for the methods; NaN with one seed

    @property
    def method(self) -> Method:
        """The options that tell it from the others."""
        return self.cells[0].method

    @property
    def num_seeds(self) -> int:
        """How many cells it has."""
        return len(self.cells)


@dataclass(frozen=True)
class Ranking(Printed):
    """Methods that can be compared, the best of the test images first."""

    rows: tuple[Row, ...]
    num_images: int
    protocol: Mapping[str, object]

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> Table:
        """One row a method."""
        varied = list(dict.fromkeys(name for row in self.rows for name, _ in row.method))
        columns = (
            *(varied or ["method"]),
            *("seeds", quantity(self.protocol), "± MC", "difference", "± images", "± seeds"),
            *("k̂ > 0.7", "median ESS", "active units", "training"),
        )
        kind, digest = self.protocol.get("kind", "unknown kind"), self.protocol.get("sha256", "")
        title = (
            f"{quantity(self.protocol)}, {kind}: N = {self.num_images} images of "
            f"{self.protocol.get('data', 'the test set')} (sha256 {shorten(digest)})"
        )
        notes = (
            "nats; a difference is from the first row",
            "± images: error for these trained models; ± seeds: error for the method (– "
            "with one seed)",
        )
        rows = tuple(_cells(row, varied, first=row is self.rows[0]) for row in self.rows)
        return Table(columns, rows, title, notes)


def rank(cells: Sequence[Scored]) -> list[Ranking]:
    """One ranking for each set of cells that `compare` would compare: one quantity, kind, data.

    Args:
        cells: in any order; cells of one method differ by their seed.
    """
    groups: list[list[Scored]] = []
    for cell in cells:
        for group in groups:
            if _comparable(group[0], cell):
                group.append(cell)
                break
        else:
            groups.append([cell])
    return [_ranked(group) for group in groups]


def best(cells: Sequence[Scored]) -> Scored:
    """The cell whose validation images have the most log p(x); its test number is then honest.

    Raises:
        UserError: no cell was scored on validation images, or they can't be compared.
    """
    scored = [cell for cell in cells if cell.valid is not None]
    if not scored:
        raise UserError(
            "no cell has a score on validation images, which are needed to choose the best "
            "one: sweep with a valid_fraction above 0"
        )
    if len(rank(scored)) > 1:
        raise UserError(
            "these cells can't be compared (a mass and a density, or other images), so none is "
            "the best: make a sweep for each kind"
        )
    return max(scored, key=lambda cell: cell.valid.mean if cell.valid else -float("inf"))


def _comparable(one: Scored, other: Scored) -> bool:
    try:
        compare({"one": one.test, "other": other.test})
    except UserError:
        return False
    return True


def _ranked(group: Sequence[Scored]) -> Ranking:
    methods: dict[Method, dict[int, Scored]] = {}
    for cell in group:
        methods.setdefault(cell.method, {})[cell.seed] = cell
    order = sorted(methods.values(), key=lambda by_seed: -_mean(by_seed.values()))
    rows = [Row(tuple(each.values()), *paired(each, order[0])) for each in order]
    first = group[0].test
    return Ranking(tuple(rows), len(first.log_px), first.protocol)


def _mean(cells: Iterable[Scored]) -> float:
    return fmean(cell.test.mean for cell in cells)


def paired(cells: Mapping[int, Scored], others: Mapping[int, Scored]) -> tuple[float, float, float]:
    """The mean difference of two methods, by seed, and its standard errors over images and over
    seeds: over the seeds that both have (NaN where there is none in common).
    """
    if cells is others:
        return 0.0, 0.0, 0.0
    if not (seeds := [seed for seed in cells if seed in others]):
        return nan, nan, nan
    differences = torch.stack(
        [(cells[seed].test.log_px - others[seed].test.log_px).double().cpu() for seed in seeds]
    )  # (S, N)
    by_image, by_seed = differences.mean(0), differences.mean(1).tolist()
    over_images = float(by_image.std() / len(by_image) ** 0.5) if len(by_image) > 1 else nan
    over_seeds = stdev(by_seed) / sqrt(len(seeds)) if len(seeds) > 1 else nan
    return float(differences.mean()), over_images, over_seeds


def _cells(row: Row, varied: Sequence[str], first: bool) -> tuple[str, ...]:
    said, cells = dict(row.method), row.cells
    se_mc = sqrt(sum(cell.test.se_mc**2 for cell in cells)) / len(cells)
    units = map(fmean, zip(*(cell.active_units for cell in cells), strict=False))
    compared = row.difference, row.se_images, row.se_seeds
    return (
        *([said.get(name, "") for name in varied] or [cells[0].name]),
        str(row.num_seeds),
        figure(_mean(cells)),
        figure(se_mc, 3),
        *(("first", "", "") if first else map(_shown, compared)),
        _shown(fmean(float(getattr(cell.test, "high_khat", nan)) for cell in cells), "{:.0%}"),
        _shown(fmean(float(cell.test.ess.median()) for cell in cells), "{:.0f}"),
        " of ".join(f"{number:.3g}" for number in units) or "–",
        _shown(fmean(cell.seconds for cell in cells), "{:.0f} s"),
    )


def _shown(value: float, form: str = "") -> str:
    if not isfinite(value):
        return "–"
    return form.format(value) if form else figure(value)
