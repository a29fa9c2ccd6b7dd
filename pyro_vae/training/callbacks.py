"""Callbacks of `fit`: any callable that takes an `EpochEnd`; returning True ends the training.

A callback that has ``state_dict`` and ``load_state_dict`` is resumed with the training. One that
has ``at_boundary(state, after)`` is called after each "step" (of the steps of one CUDA graph after
the last), and after each "epoch" once all callbacks have run ("end" after the last), with a
function that gives the `TrainingState` there; its tensors are the living ones, to be written at
once or copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.training.history import History, Record

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair
    from pyro_vae.training.state import TrainingState


@dataclass(frozen=True)
class EpochEnd:
    """What a callback gets after each epoch.

    Attributes:
        pair: the two programs that are trained, a `Pair`.
        train: the `Record` of this epoch, in nats per image.
        valid: that of the validation set, or None.
        history: all records so far.
        last: whether this is the last epoch in any case.
        capture: makes a `TrainingState` that shares its tensors with the training; `training_state`
            copies it.
    """

    pair: Pair
    train: Record
    valid: Record | None
    history: History
    last: bool  # whether the training would end here in any case
    capture: Callable[[], TrainingState] = field(repr=False)

    def training_state(self) -> TrainingState:
        """A copy of the training's state, for ``fit(…, resume=state)``.

        Callbacks later in the list have not seen this epoch yet, so put the callback that takes it
        last.
        """
        return self.capture().copy()


@dataclass
class EarlyStopping:
    """A callback that ends the training when the validation ELBO no longer rises; the best
    parameters are restored.

    Args:
        patience: epochs without a rise after which the training ends.
        min_delta: the smallest rise that counts, in nats.

    Raises:
        UserError: `fit` has no ``x_valid``; raised at the end of the first epoch.
    """

    patience: int = 10
    min_delta: float = 0.0
    best: Record | None = field(default=None, init=False)
    _state: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __call__(self, state: EpochEnd) -> bool:
        """Whether to stop now; at the end the best epoch's parameters and buffers are restored."""
        if state.valid is None:
            raise UserError("EarlyStopping needs the validation ELBO: give fit(…, x_valid=…)")
        if self.best is None or state.valid.elbo > self.best.elbo + self.min_delta:
            self.best = state.valid
            self._state = [tensor.detach().clone() for tensor in state.pair.tensors()]
        stop = state.valid.epoch - self.best.epoch >= self.patience
        if stop or state.last:
            for tensor, kept in zip(state.pair.tensors(), self._state, strict=True):
                tensor.data.copy_(kept)
        return stop

    def state_dict(self) -> dict[str, Any]:
        """The best epoch's record and tensors."""
        return {
            "best": None if self.best is None else asdict(self.best),
            "tensors": list(self._state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that state."""
        self.best = None if state["best"] is None else Record(**state["best"])
        self._state = list(state["tensors"])


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
