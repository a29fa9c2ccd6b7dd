"""KL warm-up: the KL weight as a function of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pyro_vae.choices import registry
from pyro_vae.errors import UserError
from pyro_vae.validation import check_number, check_whole

__all__ = ["Cyclical", "Linear"]


@dataclass(frozen=True)
class Warmup(ABC):
    """``warmup(step, total_steps, steps_per_epoch)`` multiplies the KL weight (β) of that step, the
    first being step 0.
    """

    slot: ClassVar[str] = "warmup"

    @abstractmethod
    def __call__(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The share of β, in [0, 1]."""


@dataclass(frozen=True)
class Linear(Warmup):
    """min(1, t / T₀) at step t, T₀ the steps of ``epochs`` passes (Bowman et al. 2016).

    1 throughout for 0 epochs.
    """

    epochs: float = 10.0

    def __post_init__(self) -> None:
        check_number("kl_warmup={!r}", self.epochs, "a number of epochs, 0 or more")

    def __call__(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """A line from 0 to 1, then 1."""
        return min(1.0, step / (self.epochs * steps_per_epoch)) if self.epochs else 1.0


@dataclass(frozen=True)
class Cyclical(Warmup):
    """min(1, τ / R) at step t of T, τ = (t mod T/M) / (T/M) (Fu et al. 2019).

    M = ``cycles`` over the whole training, each a rise from 0 over a share R = ``ramp`` of it, and
    then 1 ("Cyclical Annealing
    Schedule: A Simple Approach to Mitigating KL Vanishing", with M = 4 and R = 0.5).
    """

    cycles: int = 4
    ramp: float = 0.5

    def __post_init__(self) -> None:
        check_whole("Cyclical(cycles={!r})", self.cycles, "cycles")
        words = "a share of a cycle, above 0 and at most 1"
        check_number("Cyclical(ramp={!r})", self.ramp, words, high=1, ends="(]")

    def __call__(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """A line from 0 to 1 in each cycle, then 1 until the next."""
        length = total_steps / self.cycles
        return min(1.0, step % length / length / self.ramp)


def make_warmup(spec: float | str | Warmup) -> Warmup:
    """A number of epochs is `Linear`; else a warm-up, its name, or a call such as
    ``"Cyclical(cycles=4, ramp=0.5)"``.
    """
    if isinstance(spec, int | float):
        return Linear(spec)
    built = registry.build("warmup", spec)
    if not isinstance(built, Warmup):
        raise UserError(
            f"kl_warmup is a {type(built).__name__}: expected a number of epochs, or a warm-up "
            "such as 'Cyclical(cycles=4)'"
        )
    return built
