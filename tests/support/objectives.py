"""Losses with their gradients, ours and Pyro's, and pairs that make them hard."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from pyro_vae.objectives import Objective
from pyro_vae.pair.rescoring import leaves
from pyro_vae.pair.runtime import Pair
from tests.support.pairs import LATENT, Decoder, Encoder


def ours(
    objective: Objective, model: Any, guide: Any, x: Tensor, seed: int = 3
) -> tuple[Tensor, dict[int, Tensor]]:
    """The loss, and its gradient by parameter."""
    loss = objective(model, guide)
    Pair.of(model, guide).structure(x, {})
    torch.manual_seed(seed)
    return with_gradients(loss(x))


def with_gradients(loss: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The loss's value and its gradient in every leaf."""
    found = leaves(loss)
    gradients = torch.autograd.grad(loss, found)
    return loss.detach(), {
        id(leaf): gradient for leaf, gradient in zip(found, gradients, strict=True)
    }


def bernoulli_latents(levels: int = 1, plated: bool = False) -> tuple[Any, Any]:
    """Binary latents, without a reparameterisation; with a Gaussian one beside them if ``levels``
    is 2.
    """
    decoder, encoder = Decoder(3 * levels), Encoder(3 * levels)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = [pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))]
            if levels == 2:
                parts.append(pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)))
            pyro.sample(
                "x", dist.Bernoulli(logits=decoder(torch.cat(parts, -1))).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        loc, scale = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=loc[..., :3]).to_event(1))
            if levels == 2:
                pyro.sample("z", dist.Normal(loc[..., 3:], scale[..., 3:]).to_event(1))

    return model, guide


def scaled(beta: float, size: int | None) -> tuple[Any, Any]:
    """A KL weight of Pyro's kind, on model and guide together, and a subsampling plate."""
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        with pyro.plate("data", size or len(x), subsample=x if size else None):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with (
            pyro.plate("data", size or len(x), subsample=x if size else None),
            poutine.scale(scale=beta),
        ):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide
