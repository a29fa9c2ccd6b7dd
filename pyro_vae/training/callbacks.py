"""What may run after each epoch: any callable of the training's state; returning True ends the
training.

A callback that has ``state_dict`` and ``load_state_dict`` is resumed with the training. One that
has ``at_boundary(state, after)`` is called after each "step", and after each "epoch" once all
callbacks have run ("end" after the last), with a function that gives the `TrainingState` there; its
tensors are the living ones, to be written at once or copied.
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
    """The state that a callback receives after each epoch.

    Attributes:
        pair: the two programs that are trained.
        train: this epoch's record.
        valid: that of the validation set, where there is one.
        history: all records so far.
        last: whether the training would end here in any case.
        capture: makes a `TrainingState`; `training_state` copies it.
    """

    pair: Pair
    train: Record
    valid: Record | None
    history: History
    last: bool  # whether the training would end here in any case
    capture: Callable[[], TrainingState] = field(repr=False)

    def training_state(self) -> TrainingState:
        """For ``fit(…, resume=state)``; callbacks later in the list have not seen this epoch in it,
        so be the last one.
        """
        return self.capture().copy()


@dataclass
class EarlyStopping:
    """End when the validation ELBO has not risen by ``min_delta`` nats for ``patience`` epochs;
    keep the best parameters.

    Args:
        patience: epochs without a rise after which it ends.
        min_delta: the least rise that counts, in nats.
    """

    patience: int = 10
    min_delta: float = 0.0
    best: Record | None = field(default=None, init=False)
    _state: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __call__(self, state: EpochEnd) -> bool:
        """Whether to stop now; at the end the best epoch's parameters and buffers are put back."""
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
        """Go on from there."""
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
