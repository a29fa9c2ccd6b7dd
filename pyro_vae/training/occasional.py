"""Rate limit: work that costs time is done only so often."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Occasional:
    """Something that costs time: done where it is at most a part of the time since the last."""

    share: int
    since: float = field(default_factory=time.perf_counter)
    cost: float = 0.0

    @property
    def due(self) -> bool:
        """Whether it is worth its time again."""
        return time.perf_counter() - self.since > self.share * self.cost

    def done(self, begun: float) -> None:
        """It has been done, from ``begun`` until now."""
        self.since = time.perf_counter()
        self.cost = self.since - begun
