"""This package: `fit`, the step that it runs, and `log_marginal`."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.architectures import Architecture
from benchmarks.contestants import Epochs, Step, Train
from pyro_vae.data.batches import Resident
from pyro_vae.objectives import Loss, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from pyro_vae.training.optimizers import make_optimizer
from pyro_vae.training.select_step import select_step
from pyro_vae.training.stepper import trainable
from pyro_vae.training.train_step import StagedStep, TrainStep
from pyro_vae.training.updates import Health, Update


def step(at: Architecture, x: Tensor, tier: str, *, beside: bool = False) -> Step:
    """The step that ``fit`` runs in this tier, or that with the optimiser's own kernel beside the
    graph.
    """
    model, guide = at.pair()
    pair = Pair.of(model, guide).to(x.device)
    loss = Loss(TraceMeanField_ELBO(), pair).to(x.device)
    fields = {"index": torch.arange(len(x), device=x.device)}
    with pair.active(training=True):
        parameters = trainable(loss, x, fields)
        update = Update(make_optimizer("Adam", parameters, 1e-3), parameters, Health.on(x.device))
        found = TrainStep(loss, parameters, update)
        if beside:
            staged = StagedStep(found, tier)
            staged.inside = False
            staged.prepare((x, fields))
            found = staged
        else:
            found, _, note = select_step(found, tier, 1, Resident(x, {}, len(x), x.device))
            assert found.tier == tier, note
        found.update.set_rate(1.0)  # `fit` tells a rate when it changes
    return Running(pair, found, x, fields)


@dataclass(frozen=True)
class Running:
    """A step inside the pair's context, which `fit` enters once an epoch."""

    pair: Pair
    step: TrainStep
    x: Tensor
    fields: dict[str, Tensor]

    def around(self) -> AbstractContextManager[None]:
        """That context."""
        return self.pair.active(training=True)

    def __call__(self) -> Tensor:
        """The loss, summed over the batch."""
        return self.step(self.x, self.fields)[0]


def epochs(at: Architecture, images: Tensor, tier: str) -> Train:
    """`fit`, timed from the end of an epoch to the end of the next: its set-up is in the first,
    which is not counted.
    """
    model, guide = at.pair()

    def train(num_epochs: int) -> Epochs:
        ends: list[float] = []

        def clock(_: Any) -> None:
            ends.append(time.perf_counter())

        history = pv.fit(
            model,
            guide,
            images,
            num_epochs=num_epochs + 1,
            batch_size=at.batch_size,
            schedule="constant",
            compile=tier,
            device=images.device,
            callbacks=[clock],
            progress=False,
        )
        assert tier == "auto" or history.compile == tier, history.note
        return Epochs([b - a for a, b in pairwise(ends)], history.train[-1].loss)

    return train


def log_px(
    model: Any, guide: Any, x: Tensor, num_samples: int, tier: str, precision: str = "float32"
) -> pv.LogMarginal:
    """`log_marginal`, all of it."""
    return pv.log_marginal(
        model, guide, x, num_samples=num_samples, precision=precision, device=x.device, compile=tier
    )
