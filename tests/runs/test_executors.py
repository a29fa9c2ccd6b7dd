"""Work on processes of which one is killed: every other piece is done, that one is tried again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyro_vae.errors import UserError
from pyro_vae.runs.executors import Pool, WorkerLost, cluster, find_pool, here, run_all
from tests.support.pieces import square


def pieces(folder: Path, *what: str) -> list[tuple[int, str, str]]:
    """One for each word."""
    return [(number, word, str(folder / f"{number}")) for number, word in enumerate(what)]


def results(given: list[tuple[int, str, str]], jobs: int, pool: Pool) -> dict[int, Any]:
    """By number: a result, or an error."""
    return dict(run_all(square, given, jobs, pool))


def test_an_error_is_its_own_pieces_alone(tmp_path: Path) -> None:
    found = results(pieces(tmp_path, "", "raise", "", ""), 2, here)
    assert str(found.pop(1)) == "piece 1" and found == {0: 0, 2: 4, 3: 9}


def test_a_killed_process_costs_one_retry_in_a_fresh_pool(tmp_path: Path) -> None:
    found = results(pieces(tmp_path, "", "kill once", "", "", ""), 2, here)
    assert found == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}


def test_one_that_kills_twice_gets_its_line_and_the_others_are_done(tmp_path: Path) -> None:
    found = results(pieces(tmp_path, "", "", "kill", "", "kill once", ""), 2, here)
    assert isinstance(found[2], WorkerLost) and "killed" in str(found.pop(2))
    assert found == {0: 0, 1: 1, 3: 9, 4: 16, 5: 25}


@contextmanager
def two_workers() -> Iterator[str]:
    """A Dask cluster on this machine; the address of its scheduler."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made.scheduler_address


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask's own, of workers that die
def test_a_dask_cluster_of_which_a_worker_is_killed_ends_the_same(tmp_path: Path) -> None:
    with two_workers() as address:
        found = results(pieces(tmp_path, "", "raise", "kill once", "", "", ""), 2, cluster(address))
    assert str(found.pop(1)) == "piece 1"
    assert found == {0: 0, 2: 4, 3: 9, 4: 16, 5: 25}


def test_an_engine_that_is_none_is_one_line() -> None:
    with pytest.raises(UserError, match="expected here, print, or a Dask scheduler's address"):
        find_pool("slurm")
