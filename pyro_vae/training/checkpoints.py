"""Checkpoint callback of `fit`: it keeps the last checkpoint, the one before, and the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae import distributed
from pyro_vae.errors import UserError
from pyro_vae.files import sweep
from pyro_vae.signals import Stopped, Waiting
from pyro_vae.training import checkpoint_files, snapshot
from pyro_vae.training.callbacks import EpochEnd, Occasional
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.state import TrainingState

SHARE = 50
"""At an epoch's end a checkpoint is written where it costs at most 1/50 of the time since the last
one.
"""


class Checkpoints:
    """A callback of `fit` that writes checkpoints: every few minutes, and at the end of an epoch.

    ``folder`` keeps the last two checkpoints, and the parameters of the best validation ELBO.
    ``fit(…, resume=folder)`` continues from the last one. Older ones that this object wrote are
    removed; those of another process stay. After short epochs not every end of an epoch is written,
    so that writing takes at most 1/50 of the time. Of several processes the first one decides and
    writes.

    Args:
        folder: where the checkpoints are; it is made if there is none.
        minutes: the largest time between two checkpoints; 0 writes after every step.
        metadata: plain values that are stored in each file.

    Raises:
        UserError: ``minutes`` is negative.
        OSError: the folder can't be written; what is in it is unchanged.
    """

    def __init__(
        self, folder: str | Path, minutes: float = 5.0, metadata: Mapping[str, Any] | None = None
    ) -> None:
        if not minutes >= 0:
            raise UserError(f"Checkpoints(minutes={minutes}): expected 0 or more")
        self.folder, self.minutes, self.metadata = Path(folder), minutes, dict(metadata or {})
        self.waiting = (
            Waiting()
        )  # a signal that is to end the training, once a checkpoint is written
        self.last = next(reversed(checkpoint_files.complete(self.folder)), None)
        self.best_elbo: float | None = None
        self._best: Checkpoint | None = None  # not written yet
        self._written: dict[bool, list[Path]] = {
            True: [],
            False: [],
        }  # and not removed: the best ones, and the others
        self._writes = Occasional(SHARE)
        self.group = distributed.current()
        if self.group.first:
            sweep(self.folder)

    def __call__(self, end: EpochEnd) -> None:
        """Note the best epoch; never ends the training."""
        if end.valid is not None and (self.best_elbo is None or end.valid.elbo > self.best_elbo):
            self.best_elbo = end.valid.elbo
            known = {
                **self.metadata,
                "epoch": end.valid.epoch,
                "step": end.valid.step,
                "elbo": end.valid.elbo,
            }
            tensors = snapshot.tensors_of(end.pair)
            self._best = Checkpoint(snapshot.mapped(tensors, Tensor.clone), known)

    def at_boundary(self, state: Callable[[], TrainingState], after: str) -> None:
        """Write a checkpoint if one is due, at the end, or if a signal waits, which is raised
        afterwards.
        """
        stopped, since = self.waiting.signal, time.perf_counter() - self._writes.since
        due = since >= 60 * self.minutes or (after == "epoch" and self._writes.due)
        wanted = int(self.group.first and (due or after == "end"))
        wanted, number = self.group.largest(wanted, stopped.number if stopped is not None else 0)
        if wanted or number:
            self.save(state())
        if number:
            stopped = stopped or Stopped(number)
            stopped.kept = self.group.once(self.kept)
            raise stopped

    def kept(self) -> str:
        """A sentence on the checkpoint that a stopped training can go on from."""
        self._look()
        return (
            f"checkpoint: {self.last}" if self.last is not None else "no checkpoint was written yet"
        )

    def save(self, state: TrainingState) -> None:
        """Write this state, and the best parameters if they are new."""
        if not self.group.first:
            return
        begun = time.perf_counter()
        if self._best is not None:
            best = snapshot.mapped(self._best, lambda tensor: tensor.cpu())
            self._add(best, best.metadata["step"], best=True)
            self._best = None
        self.last = self._add(state.to_checkpoint(self.metadata), state.step)
        self._writes.done(begun)

    def _add(self, held: Checkpoint, step: int, best: bool = False) -> Path:
        """Write one, then remove what this object wrote before the last two (the last best one)."""
        written = self._written[best]
        written.append(checkpoint_files.add(self.folder, held, step, best))
        while len(written) > (1 if best else 2):
            checkpoint_files.remove(written.pop(0))
        return written[-1]

    def _look(self) -> None:
        if not self.group.first:  # it is not this process that writes them
            self.last = next(reversed(checkpoint_files.complete(self.folder)), None)

    def state_dict(self) -> dict[str, Any]:
        """The best validation ELBO so far."""
        return {"best_elbo": self.best_elbo}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that state; newer checkpoints, which it passes over, are renamed."""
        self.best_elbo = state["best_elbo"]
        if self.group.first and checkpoint_files.listed(self.folder):
            checkpoint_files.set_aside(checkpoint_files.newest(self.folder).unsound)
