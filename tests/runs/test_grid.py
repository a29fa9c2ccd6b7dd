"""A grid is the product of its lists; what is wrong with it is told before anything is trained."""

from __future__ import annotations

import csv
import io
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pyro_vae.errors import UserError
from pyro_vae.runs.grid import cells, read_grid
from pyro_vae.runs.options import Train

ROOT = Path(__file__).resolve().parents[2]


def test_lists_are_crossed_and_the_rest_is_common() -> None:
    guides, seeds = ["MeanField", "IAF(depth=2)"], [0, 1, 2]
    made = cells([{"guide": guides, "seed": seeds, "steps": 50, "latent-dim": [4]}])
    found = [(cell.options.guide, cell.options.seed) for cell in made]
    assert found == list(product(guides, seeds))
    assert {(cell.options.steps, cell.options.latent_dim) for cell in made} == {(50, 4)}
    assert all(set(cell.varied) == {"guide", "seed"} for cell in made)
    assert len({cell.name for cell in made}) == 6
    assert len({cell.method for cell in made}) == 2  # the seed is no method


def test_a_file_is_the_same_as_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'steps = 50\nseed = [0, 1]\nguide = "MeanField"\n'
        '[[cell]]\nprior = ["StandardNormal", "VampPrior"]\n[[cell]]\nguide = "NSF"\nseed = 5\n'
    )
    made = cells(read_grid(path))
    assert [(c.options.guide, c.options.prior, c.options.seed) for c in made] == [
        ("MeanField", "StandardNormal", 0),
        ("MeanField", "VampPrior", 0),
        ("MeanField", "StandardNormal", 1),
        ("MeanField", "VampPrior", 1),
        ("NSF", "StandardNormal", 5),
    ]


def test_the_committed_ranking_is_of_the_grid_on_mnist() -> None:
    made = cells(read_grid(ROOT / "benchmarks" / "grid.toml"))
    text = (ROOT / "benchmarks" / "results" / "grid.csv").read_text(encoding="utf-8")
    ranked = [
        tuple(row[name] for name in made[0].varied) for row in csv.DictReader(io.StringIO(text))
    ]
    assert len(made) == 10 and {each.options.data for each in made} == {"mnist"}
    assert sorted(ranked) == sorted(tuple(value for _, value in each.method) for each in made)


def test_a_single_cell_has_the_options_of_a_training() -> None:
    (cell,) = cells([{}])
    assert cell.options == Train().decided() and cell.name == "cell"


def test_a_name_serves_as_a_folder_however_long_its_values_are() -> None:
    made = cells([{"guide": [f"IAF(depth=2, hidden=({', '.join('9' * n)},))" for n in (40, 41)]}])
    assert len({cell.name for cell in made}) == 2
    assert all(len(cell.name) <= 80 and "/" not in cell.name for cell in made)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"guid": ["MeanField"]}, "unknown option 'guid'; did you mean 'guide'"),
        ({"steps": ["many"]}, "steps = 'many': expected a whole number"),
        ({"seed": []}, "seed has no value"),
        ({"seed": [0, 0]}, "is there twice"),
        ({"guide": ["IAF(depth=2)", "iaf( depth=2 )"]}, "is there twice"),
        ({"latent_dim": [0]}, "--latent-dim 0: expected a whole number"),
        ({"steps": 10, "epochs": 1}, "give one of the two"),
        ({"out": "runs"}, "unknown option 'out'"),
    ],
)
def test_what_is_wrong_is_one_line(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        cells([table], "grid.toml")
    assert said in str(caught.value)


def test_a_file_that_is_no_grid_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    for text, said in [("steps = ", "not valid TOML"), ("cell = 3", "expected tables")]:
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_grid(path)
