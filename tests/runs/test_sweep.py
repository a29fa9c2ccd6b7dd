"""A sweep ends at the same table however often it was stopped; a cell that fails keeps its line."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.analysis.diagnose import active_units
from pyro_vae.errors import UserError
from pyro_vae.runs import sweep
from pyro_vae.runs.command_options import Evaluate
from pyro_vae.runs.grid import cells
from pyro_vae.runs.options import Train
from pyro_vae.runs.preview import commands, preview
from pyro_vae.runs.run_data import trained
from pyro_vae.runs.run_folder import open_run
from pyro_vae.runs.sweep import NO_SCORE, Outcome, Sweep, as_piece, run_cell
from pyro_vae.training.settings import flag

SMALL: dict[str, Any] = {
    "data": "digits",
    "steps": 20,
    "num_samples": 10,
    "eval_images": 30,
    "net": "MLP(hidden=(8,))",
    "latent_dim": 2,
    "compile": "graph",
}


def run_here(grid: dict[str, Any], out: Path) -> None:
    """Every cell in this process."""
    for number, cell in enumerate(cells([{**SMALL, **grid}])):
        assert run_cell(as_piece(cell, out, number, 1)) == {"failed": ""}


def swept(out: Path, **grid: Any) -> Sweep:
    """A sweep whose cells may be done already."""
    return pv.sweep({**SMALL, **grid}, out=out, tell=lambda line: None)


@pytest.mark.slow
def test_cells_are_trained_ranked_and_not_trained_again(tmp_path: Path) -> None:
    grid = {"guide": ["MeanField", "FullRank", "PointEstimate"], "seed": [0, 1]}
    run_here(grid, tmp_path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".run.lock"}
    found = swept(tmp_path, **grid)
    assert not [each.failed for each in found.outcomes if each.failed]
    (ranking,) = found.rankings
    assert {row.num_seeds for row in ranking.rows} == {2} and ranking.num_images == 30
    assert [row[1] for row in found.tables()[1].rows] == [NO_SCORE, NO_SCORE]
    cell = found.scored[0]
    experiment, _ = trained(open_run(tmp_path / cell.name), Evaluate(tmp_path), print)
    pair, x = pv.load(tmp_path / cell.name), experiment.images("test", 359)[0]
    units = active_units(*pair, x, "cpu")
    assert cell.active_units == (units.count, 2)
    assert found.best().valid is not None
    best = max(found.scored, key=lambda cell: cell.valid.mean if cell.valid else -9e9)
    assert found.best().name == best.name
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".run.lock"}
    assert after == files  # nothing was done twice


@pytest.mark.slow
def test_a_cell_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """Its numbers are those of one that was not."""
    run_here({"seed": [0]}, tmp_path / "whole")
    (cell,) = cells([{**SMALL, "seed": 0}])
    piece = as_piece(cell, tmp_path / "cut", 0, 1)
    folder = tmp_path / "cut" / cell.name
    with pytest.MonkeyPatch.context() as patch:
        from pyro_vae.runs import train

        def stop(*given: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(train, "_last_evaluation", stop)
        with pytest.raises(KeyboardInterrupt):
            run_cell(piece)
    assert (folder / "config.toml").is_file() and not list(folder.glob("evaluations/*"))
    assert run_cell(piece) == {"failed": ""}
    found = [swept(tmp_path / name, seed=[0]).scored[0] for name in ("whole", "cut")]
    assert found[0].test.log_px.tolist() == found[1].test.log_px.tolist()


def test_a_cell_has_its_share_of_the_threads_and_gives_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = cells([SMALL])
    seen: list[int] = []

    def fails(*_: object) -> None:
        seen.append(torch.get_num_threads())
        raise UserError("a mistake")

    monkeypatch.setattr(sweep, "bring_to_its_end", fails)
    torch.set_num_threads(4)
    assert run_cell(as_piece(cell, tmp_path, 0, 2)) == {"failed": "a mistake"}
    assert seen == [2] and torch.get_num_threads() == 4


def test_a_folder_of_another_experiment_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    (cell,) = cells([SMALL])
    folder = tmp_path / cell.name
    folder.mkdir()
    (folder / "config.toml").write_text('data = "digits"\nsteps = 21\n')
    with pytest.raises(UserError, match=r"has a run with .*: give another --out"):
        swept(tmp_path)


def test_what_is_refused_is_one_line_and_the_preview_tells_it_before(tmp_path: Path) -> None:
    grid = {**SMALL, "guide": ["MeanField", "Delta"], "objective": "IWAE(5)", "seed": [0, 1]}
    every = cells([grid])
    table = preview(every, tmp_path)
    assert [row[1] for row in table.rows] == ["new", "new", "refused", "refused"]
    assert table.rows[0][2].startswith("about") and "Delta" in table.notes[1]
    assert not list(tmp_path.iterdir())  # nothing was written
    assert "4 cells in" in table.notes[0] and "takes about" in table.notes[0]
    failed = run_cell(as_piece(every[2], tmp_path, 2, 1))["failed"]
    assert failed and "\n" not in failed


def test_commands_are_the_cells_options(tmp_path: Path) -> None:
    grid = {name: value for name, value in SMALL.items() if name != "steps"}
    grid |= {"guide": ["MeanField", "IAF(depth=2)"], "pictures": False, "epochs": 2}
    every = cells([grid])
    from pyro_vae.cli.entry import parse

    for line, cell in zip(commands(every, tmp_path), every, strict=True):
        options = parse(shlex.split(line)[1:])
        assert isinstance(options, Train)
        assert options.out == tmp_path / cell.name
        for name in ("steps", *grid):
            assert getattr(options, name) == getattr(cell.options, name)


TWELVE = {"guide": ["MeanField", "FullRank"], "kl_weight": [1.0, 0.5], "seed": [0, 1, 2]}


@pytest.mark.stress
def test_twelve_cells_killed_three_times_end_at_the_same_table(tmp_path: Path) -> None:
    """The process and its workers, by SIGKILL: while a cell is trained, before it is scored, and
    between the scores of its test and its validation images.
    """
    run_here(TWELVE, tmp_path / "whole")
    every, out = cells([{**SMALL, **TWELVE}]), tmp_path / "killed"
    whole = Sweep(tuple(Outcome(each, tmp_path / "whole" / each.name) for each in every))
    crossed = [word for n, vs in TWELVE.items() for word in (flag(n), *map(str, vs))]
    same = [word for name, value in SMALL.items() for word in (flag(name), str(value))]
    words = [
        sys.executable,
        "-m",
        "pyro_vae",
        "sweep",
        *crossed,
        *same,
        "--checkpoint-minutes",
        "0",
    ]
    words += ["--out", str(out), "--format", "csv"]
    start = partial(subprocess.Popen, words, stdout=subprocess.PIPE, start_new_session=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, mark in [(3, "checkpoints/step-*.pt"), (6, "results.json"), (9, "*/iw-test.npz")]:
        with start(env=environment) as child:
            while len({path.relative_to(out).parts[0] for path in out.glob(f"*/{mark}")}) < number:
                assert child.poll() is None
                time.sleep(0.002)
            os.killpg(child.pid, signal.SIGKILL)
    with start(env=environment) as child:
        held = child.stdout.read().decode()
    assert child.returncode == 0
    untimed = [line.rpartition(",")[0] for line in held.splitlines()]
    assert untimed == [line.rpartition(",")[0] for line in whole.table().to_csv().splitlines()]
    killed = Sweep(tuple(Outcome(each, out / each.name) for each in every))
    for ours, theirs in zip(killed.scored, whole.scored, strict=True):
        assert ours.test.log_px.tolist() == theirs.test.log_px.tolist(), ours.name
    assert killed.best().name == whole.best().name
