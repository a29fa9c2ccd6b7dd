"""Commands of `pyro-vae`, run as processes of their own, several at a time; a signal reaches each
of them once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.reproduce.cells import Cell
from pyro_vae.errors import UserError
from pyro_vae.signals import Stopped

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: the configurations name this folder's loaders and networks as modules."""

PAUSE = 0.2
"""Seconds between two looks at what is running."""

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Job(Protocol):
    """A command that has been started."""

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""

    def stop(self) -> None:
        """Tell it to write a checkpoint and end."""

    def wait(self) -> None:
        """Until it has ended."""


class Child:
    """`pyro-vae` as a child, in a session of its own, as a Ctrl-C in the terminal and our own
    signal would be two.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyro_vae", *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdout=sys.stderr,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def stop(self) -> None:
        """SIGTERM, after which `pyro-vae` ends at the next step with a checkpoint."""
        self._process.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()


def work(
    cells: Iterable[Cell],
    start: Callable[[Sequence[str]], Job] = Child,
    num_jobs: int = 1,
    after: Callable[[Cell], None] = lambda cell: None,
) -> dict[str, str]:
    """Run what is left of the cells, in order; the reasons of those that failed. ``after`` is
    called with each that is done.

    Raises:
        Stopped: by a signal; what was running has written its checkpoint.
    """
    waiting, running, failed = (
        list(cells),
        dict[str, tuple[Cell, list[str], Job]](),
        dict[str, str](),
    )
    done: dict[str, list[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                cell = waiting.pop(0)
                try:
                    command = cell.next_command()
                    if command is not None and done.get(cell.name) == command:
                        raise UserError(
                            f"{cell.run}: `pyro-vae {command[0]}` ended well and left its work "
                            "undone"
                        )
                    if command is None:
                        cell.finish()
                        after(cell)
                        continue
                except UserError as mistake:
                    failed[cell.name] = str(mistake)
                    continue
                running[cell.name] = cell, command, start(command)
            for name, (cell, command, job) in list(running.items()):
                if (code := job.poll()) is None:
                    continue
                del running[name]
                if code in STOPPED:
                    raise Stopped(code - 128)
                if code:
                    failed[name] = f"`pyro-vae {command[0]}` ended with exit code {code}"
                else:
                    done[name] = command
                    waiting.insert(0, cell)
            if running:
                time.sleep(PAUSE)
    finally:
        for _, _, job in running.values():
            job.stop()
        for _, _, job in running.values():
            job.wait()
    return failed
