"""Each contestant in a process of its own: one's thread pool and allocator must not slow another,
and they still take turns.

JAX's threads alone, in the same process, made the torch contestants up to 1.6 times slower here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

SETTLE = 0.02
"""Seconds before a turn in which the threads of the contestant before stop spinning."""

_fresh = get_context("spawn")


class Seat:
    """A contestant, made by ``make(name, *arguments)`` in its process, and asked there by the names
    of its methods.
    """

    def __init__(self, name: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.name = name
        self._pipe, theirs = _fresh.Pipe()
        self._process = _fresh.Process(target=_serve, args=(theirs, make, name, arguments))
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the method returns; a RuntimeError where it fails."""
        time.sleep(SETTLE)
        try:
            self._pipe.send((method, arguments))
            failed, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"{self.name}: its process has ended") from error
        if failed:
            raise RuntimeError(f"{self.name}: {value}")
        return value

    def leave(self) -> None:
        """End its process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


@contextmanager
def seated(
    names: Iterable[str], make: Callable[..., Any], *arguments: Any
) -> Iterator[dict[str, Seat]]:
    """Contestants by name, each ready before the next one starts, so that none is made slowly."""
    seats: dict[str, Seat] = {}
    try:
        for name in names:
            seats[name] = Seat(name, make, arguments)
            seats[name].ask("__repr__")
        yield seats
    finally:
        for seat in seats.values():
            seat.leave()


def _serve(
    pipe: Connection, make: Callable[..., Any], name: str, arguments: tuple[Any, ...]
) -> None:
    made: Any = None
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        try:
            made = make(name, *arguments) if made is None else made
            pipe.send((False, getattr(made, method)(*given)))
        except Exception as error:  # the process that asks raises it
            pipe.send((True, f"{type(error).__name__}: {error}"))
