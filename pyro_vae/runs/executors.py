"""Executors: work on several processes, here or on a cluster; work that kills its process is
retried.

Both engines have the interface of `concurrent.futures`: loky's processes on this machine, and a
Dask cluster elsewhere (dask-jobqueue brings Slurm, PBS and Kubernetes). A process that is killed
(out of memory, a machine lost) breaks loky's pool for every piece that is under way; Dask loses the
piece alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from pyro_vae.errors import UserError, one_line

Piece = TypeVar("Piece")
Result = TypeVar("Result")

Pool = Callable[[int], Any]
"""The number of workers -> a context manager that gives an executor of so many."""


class WorkerLost(Exception):
    """The process that did a piece of work was killed, and the one that tried it again too."""


def here(workers: int) -> Any:
    """Processes on this machine, which are new ones: nothing of this process is in them."""
    from loky import ProcessPoolExecutor

    return ProcessPoolExecutor(max_workers=workers)


def cluster(address: str) -> Pool:
    """The workers of a Dask cluster, as many as it has.

    Raises:
        UserError: the extra is not installed, or no scheduler answers there.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            f"--on {address} needs Dask: pip install 'pyro-vae[cluster]', or leave --on out"
        ) from None

    @contextmanager
    def pool(workers: int) -> Iterator[Executor]:
        try:
            client = Client(address, timeout="20s")
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"--on {address}: no Dask scheduler was found there ({one_line(error)}): give "
                "the address that the scheduler printed, such as tcp://host:8786"
            ) from error
        with client:
            yield client.get_executor(pure=False, retries=0)

    return pool


def find_pool(on: str) -> Pool:
    """The engine by its name: ``here``, or a Dask scheduler's address."""
    if on == "here":
        return here
    if "://" not in on:
        raise UserError(
            f"--on {on}: expected here, print, or a Dask scheduler's address such as "
            "tcp://host:8786"
        )
    return cluster(on)


def run_all(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], jobs: int, pool: Pool
) -> Iterator[tuple[int, Result | BaseException]]:
    """The number of each piece with its result, or with the error that it raised, as they come.

    Args:
        work: a function that other processes can import.
        jobs: how many pieces at a time.
    """
    waiting, suspects = dict(enumerate(pieces)), dict[int, Piece]()
    while waiting:  # a pool that broke is begun again, without the pieces that were under way
        done, lost = yield from _round(work, waiting, jobs, pool)
        suspects |= {number: waiting[number] for number in lost}
        waiting = {n: p for n, p in waiting.items() if n not in done and n not in lost}
    for number, piece in suspects.items():  # alone, so that the guilty one is known
        done, lost = yield from _round(work, {number: piece}, 1, pool)
        if lost:
            yield (
                number,
                WorkerLost("its process was killed twice (out of memory?)"),
            )


def _round(
    work: Callable[[Piece], Result], pieces: Mapping[int, Piece], jobs: int, pool: Pool
) -> Generator[tuple[int, Result | BaseException], None, tuple[set[int], set[int]]]:
    """Pieces until all are done or the pool broke: the numbers of those that are done, and of those
    that were under way when their process was lost.
    """
    done, lost = set[int](), set[int]()
    with pool(jobs) as executor:
        futures: dict[Future[Result], int] = {
            executor.submit(work, piece): number for number, piece in pieces.items()
        }
        for future in as_completed(futures):
            number, error = futures[future], future.exception()
            if isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker":
                lost.add(number)
                continue
            done.add(number)
            yield number, future.result() if error is None else error
    # of a broken pool all that is left is reported to be broken; only the first few can be the
    # cause
    begun = [number for number in pieces if number in lost][: max(1, jobs)]
    return done, set(begun)
