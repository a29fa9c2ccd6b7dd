"""Whether the machine's cores lie close together now: a virtual machine's may move to another cache
while they are timed.

On the two cores of the committed figures a parallel region takes 4.9 µs while they share a cache
and 7.1 µs while they don't; a training step of two threads then takes up to 2.6 times as long, and
ratios between contestants change with it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

CLOSE = 1.25
"""A region that takes longer than this times the least seen says that the cores are apart."""
TRIES, PATIENCE = 2, 300.0  # of one turn; seconds of waiting in all
_CALLS, _PAUSE = 300, 0.2


class Team:
    """The cores' distance over time, by how long it takes to start and end a parallel region of
    torch's threads.
    """

    def __init__(self) -> None:
        self.patience = PATIENCE
        self._x = torch.zeros(32768 * torch.get_num_threads())
        self.least = self.now()

    def now(self) -> float:
        """Seconds of one region."""
        times = []
        for _ in range(_CALLS):
            started = time.perf_counter()
            self._x.add_(1.0)
            times.append(time.perf_counter() - started)
        found = statistics.median(times)
        self.least = min(found, getattr(self, "least", found))
        return found

    def close(self, found: float | None = None) -> bool:
        """Whether the cores are close now, or were when ``found`` was measured."""
        return (self.now() if found is None else found) <= CLOSE * self.least

    def turn(self, run: Callable[[], float]) -> tuple[float, float]:
        """``run()`` begun and ended with the cores close together, where that can be had in time;
        and the region it ended with.
        """
        for _ in range(TRIES):
            while not self.close() and self.patience > 0:
                time.sleep(_PAUSE)
                self.patience -= _PAUSE
            seconds = run()
            after = self.now()
            if self.close(after):
                break
        return seconds, after
