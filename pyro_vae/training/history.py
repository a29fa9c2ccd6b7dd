"""What a training leaves behind: one record an epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_vae.formatting import Printed


@dataclass(frozen=True)
class Record:
    """Means per image, in nats. ``elbo = reconstruction − kl`` at KL weight 1, whatever the
    objective.
    """

    epoch: int
    step: int
    loss: float  # the objective's own
    elbo: float
    reconstruction: float
    kl: float


@dataclass
class History(Printed):
    """The records of ``fit``, one an epoch; ``valid`` is empty where no validation set was given.

    Attributes:
        train: one record an epoch, means per image in nats.
        valid: those of the validation set.
        num_steps: optimiser steps.
        seconds: of the training, its set-up apart.
        compile: the tier that ran.
        note: why it was chosen, and what was checked.
        stopped: which callback ended it early, and where.
        skipped: steps that were taken back, as something was not finite.
        init: what it began with: whose parameters, and which are fresh; empty where all are.
        resumed: where it was resumed, and what is not as it was.
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
