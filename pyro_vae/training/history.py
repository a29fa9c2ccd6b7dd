"""The training history: one record for each epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_vae.formatting import Printed


@dataclass(frozen=True)
class Record:
    """The figures of one epoch: means per image, in nats.

    ``elbo = reconstruction − kl`` at KL weight 1, whatever the objective.
    """

    epoch: int
    step: int
    loss: float  # the objective's own
    elbo: float
    reconstruction: float
    kl: float


@dataclass
class History(Printed):
    """The training history that `fit` returns: one record for each epoch.

    Attributes:
        train: one `Record` for each epoch: means per image, in nats.
        valid: those of the validation set; empty without one.
        num_steps: optimiser steps.
        seconds: duration of the training, without its set-up.
        compile: how the step ran: ``off`` (eagerly), ``graph`` or ``inductor``.
        note: why that was chosen, and what was checked.
        stopped: which callback ended the training early, and when.
        skipped: steps that were undone because something was not finite.
        init: the source of the initial parameters, and those that were not in it.
        resumed: where the training was resumed, and what differs from before.
    """

    train: list[Record] = field(default_factory=list)
    valid: list[Record] = field(default_factory=list)
    num_steps: int = 0
    seconds: float = 0.0
    compile: str = "off"
    note: str = ""
    stopped: str = ""
    skipped: int = 0
    init: str = ""
    resumed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.train:
            return "no epoch was finished"
        last = self.train[-1]
        text = f"{self.num_steps} steps, {last.epoch} epochs, {self.seconds:.0f} s: "
        text += f"ELBO {last.elbo:.2f} nats (train)"
        text += f", {self.valid[-1].elbo:.2f} (validation)" if self.valid else ""
        return text + (f"; {self.skipped} steps skipped, not finite" if self.skipped else "")
