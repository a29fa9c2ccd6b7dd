"""The callback of a run: each epoch recorded, and the checkpoints written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pyro_vae.runs.run import Run, shown
from pyro_vae.runs.run_lock import keep
from pyro_vae.training.callbacks import EpochEnd
from pyro_vae.training.checkpoints import Checkpoints
from pyro_vae.training.history import Record
from pyro_vae.training.state import TrainingState


class Recorder(Checkpoints):
    """The callback of a run: it writes epochs to metrics.jsonl, and checkpoints."""

    def __init__(self, run: Run, metadata: Mapping[str, Any], minutes: float) -> None:
        super().__init__(run.checkpoints, minutes, metadata)
        self.run = run
        self.rows: list[dict[str, Any]] = []

    def __call__(self, end: EpochEnd) -> None:
        """Record the epoch; never ends the training."""
        super().__call__(end)
        row = {
            "epoch": end.train.epoch,
            "step": end.train.step,
            "seconds": round(end.history.seconds, 3),
            "skipped": end.history.skipped,
            "train": _figures(end.train),
            "valid": None if end.valid is None else _figures(end.valid),
        }
        self.rows.append(row)
        self.run.add_row(row)

    def save(self, state: TrainingState) -> None:
        """Write this state, the folder being this process's own still."""
        keep(self.run.folder)
        super().save(state)

    def kept(self) -> str:
        """Which checkpoint there is, and how to go on from it."""
        self._look()
        if self.last is None:
            return "no checkpoint was written yet"
        return f"checkpoint: {shown(self.last)}; continue with: pyro-vae train --resume {self.run}"

    def state_dict(self) -> dict[str, Any]:
        """The rows of metrics.jsonl too, so that the file is what the checkpoint says."""
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write metrics.jsonl again: rows of epochs that the checkpoint has not seen will come
        again.
        """
        super().load_state_dict(state)
        self.rows = [dict(row) for row in state["rows"]]
        self.run.write_rows(self.rows)


def _figures(record: Record) -> dict[str, float]:
    """A record without its place."""
    return {key: value for key, value in asdict(record).items() if key not in ("epoch", "step")}
