"""A ranking: errors over images and over seeds by hand, one table for each kind, and a best cell
that the test images had no say in.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation.compare import compare
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.runs.ranking import Scored, best, paired, rank

N = 200
KNOWN = {"sha256": "a" * 64, "kind": "mass", "estimator": "IW-100", "data": "digits"}


def estimate(log_px: Tensor, **protocol: Any) -> LogMarginal:
    """An estimate with these log p(x)."""
    same = torch.ones_like(log_px)
    mean = float(log_px.mean())
    return LogMarginal(
        log_px=log_px,
        se=0.01 * same,
        ess=90 * same,
        khat=torch.linspace(0.0, 1.0, len(log_px)),
        elbo_px=log_px - 1,
        max_weight_share=0.1 * same,
        debiased_px=log_px,
        curve={10: mean - 0.02, 50: mean, 100: mean},
        num_samples=100,
        protocol={**KNOWN, **protocol},
    )


def grid(num_seeds: int = 3) -> list[Scored]:
    """Two methods; what makes an image hard is common to all, what a seed does to a method not."""
    drawn = torch.Generator().manual_seed(0)

    def noise(size: float, *shape: int) -> Tensor:
        return size * torch.randn(*shape, generator=drawn, dtype=torch.float64)

    hard, found = noise(20, N), []
    for method, level in (("MeanField", -100.0), ("IAF", -99.0)):
        for seed in range(num_seeds):
            log_px = level + hard + noise(0.5, 1) + noise(1, N)
            found.append(
                Scored(
                    f"{method}-{seed}",
                    (("guide", method),),
                    seed,
                    estimate(log_px),
                    None,
                    9.0,
                    active_units=(seed + 3, 8),
                )
            )
    return found


def test_both_errors_are_those_of_the_paired_differences() -> None:
    cells = grid()
    (ranking,) = rank(cells)
    first, second = ranking.rows
    assert dict(first.method) == {"guide": "IAF"} and first.difference == 0.0
    log_px = {cell.name: cell.test.log_px for cell in cells}
    gaps = torch.stack([log_px[f"MeanField-{s}"] - log_px[f"IAF-{s}"] for s in range(3)])
    assert second.difference == pytest.approx(float(gaps.mean()))
    assert second.se_images == pytest.approx(float(gaps.mean(0).std()) / N**0.5)
    assert second.se_seeds == pytest.approx(float(gaps.mean(1).std()) / 3**0.5)
    assert second.num_seeds == 3 and ranking.num_images == N
    assert ranking.table().rows[1][-2:] == ("4 of 8", "9 s")


def test_with_one_seed_it_is_compare_and_there_is_no_error_over_seeds() -> None:
    one, other = (cell for cell in grid(1))
    theirs = compare({"a": one.test, "b": other.test}).rows[1]
    (ranking,) = rank([one, other])
    row = ranking.rows[1]
    assert row.difference == pytest.approx(theirs.difference)
    assert row.se_images == pytest.approx(theirs.se_difference)
    assert math.isnan(row.se_seeds) and ranking.table().rows[1][6] == "–"


def test_seeds_are_paired_by_number_whatever_their_order() -> None:
    cells = grid()
    forward = rank(cells)[0].rows
    backward = rank(cells[::-1])[0].rows
    assert [row.se_seeds for row in forward] == [row.se_seeds for row in backward]
    first, second = (
        {c.seed: c for c in cells if c.method[0][1] == m} for m in ("IAF", "MeanField")
    )
    del second[1]
    (difference, _, over_seeds) = paired(second, first)
    gaps = [float((second[s].test.log_px - first[s].test.log_px).mean()) for s in (0, 2)]
    assert difference == pytest.approx(sum(gaps) / 2)
    assert over_seeds == pytest.approx(abs(gaps[0] - gaps[1]) / 2)


def test_what_cannot_be_compared_starts_another_table() -> None:
    cells = grid(1)
    density = Scored(
        "g", (("likelihood", "Gaussian"),), 0, estimate(cells[0].test.log_px, kind="density")
    )
    other = Scored("d", (("data", "own"),), 0, estimate(cells[0].test.log_px, sha256="b" * 64))
    found = rank([*cells, density, other])
    assert [len(ranking.rows) for ranking in found] == [2, 1, 1]
    assert "density" in found[1].table().title


def test_the_best_cell_is_chosen_on_validation_images() -> None:
    cells = [
        Scored(c.name, c.method, c.seed, c.test, estimate(c.test.log_px[:50] - 10.0 * (n != 2)))
        for n, c in enumerate(grid())
    ]
    assert best(cells).name == cells[2].name
    assert max(cells, key=lambda cell: cell.test.mean).name != cells[2].name
    with pytest.raises(UserError, match="no cell has a score on validation images"):
        best(grid())


def test_one_table_has_four_forms() -> None:
    table = rank(grid())[0].table()
    text, page, sheet = str(table), table.to_markdown(), table.to_csv()
    assert "± images" in text and "± seeds" in page and page.count("\n| ") == 3
    assert sheet.splitlines()[0].startswith("guide,seeds,log p(x)")
    assert len(sheet.splitlines()) == 3 and "<td>IAF</td>" in table.to_html()
