"""Small pairs, their images, and training steps of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae import guides, models
from pyro_vae.compile import trace
from pyro_vae.objectives import Loss, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from pyro_vae.training.stepper import trainable
from pyro_vae.training.train_step import TrainStep
from pyro_vae.training.updates import Health, Update

needs_compiler = pytest.mark.skipif(
    bool(trace.missing_compiler(torch.device("cpu"))),
    reason=f"inductor: {trace.missing_compiler(torch.device('cpu'))}",
)


def small_pair(net: str = "MLP") -> tuple[models.GenerativeModel, guides.MeanField]:
    torch.manual_seed(0)
    args = {"hidden": (24,)} if net == "MLP" else {"channels": (4, 8)}
    likelihood = models.Bernoulli(3, (1, 8, 8), net=net, **args)
    return models.GenerativeModel(models.StandardNormal(3), likelihood), guides.MeanField(
        (1, 8, 8), 3, net=net, **args
    )


def images(size: int, seed: int = 1) -> Tensor:
    return (torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def plain_step(loss: Loss, x: Tensor, fields: dict[str, Tensor]) -> TrainStep:
    """The eager step with SGD, whose gradients a staged one gives out."""
    parameters = trainable(loss, x, fields)
    return TrainStep(
        loss,
        parameters,
        Update(torch.optim.SGD(parameters, lr=0.1), parameters, Health.on(x.device)),
    )


def step_of(net: str) -> tuple[TrainStep, Tensor, dict[str, Tensor]]:
    loss = Loss(TraceMeanField_ELBO(), Pair.of(*small_pair(net)))
    x, fields = images(16), {"index": torch.arange(16)}
    with loss.pair.active(training=True):
        return plain_step(loss, x, fields), x, fields


def replayed_on_cpu(step: Any, device: torch.device) -> Any:
    """A capture for the CPU: a replay writes over the results of the last one, as a graph does."""
    held = step()

    def replay() -> Any:
        new = step()
        pairs = [(held, new)] if isinstance(held, Tensor) else zip(held, new, strict=True)
        for old, new in pairs:
            old.copy_(new)
        return held

    return replay
