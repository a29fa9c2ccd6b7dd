"""Learning-rate schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

from pyro_vae.validation import check_number, check_whole

__all__ = ["Constant", "Cosine", "Geometric", "Linear"]


@dataclass(frozen=True)
class Schedule(ABC):
    """``schedule(done)`` multiplies the learning rate; ``done`` runs from 0 at the first step to 1
    after the last.
    """

    slot: ClassVar[str] = "schedule"

    @abstractmethod
    def __call__(self, done: float) -> float:
        """The factor at the share ``done`` in [0, 1]."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout."""

    def __call__(self, done: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 to ``final`` along half a cosine (Loshchilov & Hutter 2017), after a linear rise over
    ``warmup`` of the steps.
    """

    final: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_number("Cosine(warmup={})", self.warmup, "a share of the steps in [0, 1)", high=1)

    def __call__(self, done: float) -> float:
        """Half a cosine."""
        if done < self.warmup:
            return done / self.warmup
        through = (done - self.warmup) / (1.0 - self.warmup)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + cos(pi * through))


@dataclass(frozen=True)
class Linear(Schedule):
    """From 1 to ``final`` along a line."""

    final: float = 0.0

    def __call__(self, done: float) -> float:
        """A line."""
        return 1.0 + (self.final - 1.0) * done


@dataclass(frozen=True)
class Geometric(Schedule):
    """From 1 to 1/10 in stages, stage i lasting 3^i passes at 10^(−i/7): the IWAE paper's schedule
    at 8 stages.
    """

    stages: int = 8

    def __post_init__(self) -> None:
        check_whole("Geometric(stages={})", self.stages, "stages", least=2)

    def __call__(self, done: float) -> float:
        """10^(−i/(stages − 1)) in stage i."""
        total, passed = (3**self.stages - 1) / 2, 0.0
        for stage in range(self.stages):
            passed += 3**stage
            if done * total < passed:
                return float(10.0 ** (-stage / (self.stages - 1)))
        return 0.1
