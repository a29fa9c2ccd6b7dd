"""Pyro's own loop: a plain model and guide, `SVI`, a DataLoader.

At its best (the closed-form KL, fused Adam, validation off), and set up as in Pyro's VAE example.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.architectures import Architecture
from benchmarks.contestants import Step, Train, timed


class VAE(nn.Module):
    """The model and the guide as in Pyro's tutorial, with logits."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, event_dim: int
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.event_dim = latent_dim, event_dim

    def model(self, x: Tensor) -> None:
        """p(z) p(x | z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros(x.shape[0], self.latent_dim)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(self.event_dim), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def _inference(at: Architecture, device: torch.device, as_in_example: bool = False) -> Any:
    """SVI on an empty store, where nothing that another model left is trained in place of these
    parameters.
    """
    pyro.enable_validation(as_in_example)
    pyro.clear_param_store()
    vae = VAE(*at.networks(), at.latent_dim, len(at.event_shape)).to(device)
    if as_in_example:
        return vae, SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    return vae, SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3, "fused": True}), TraceMeanField_ELBO()
    )


def _trains(at: Architecture, x: Tensor, as_in_example: bool = False) -> None:
    """Assert that a step moves every parameter."""
    vae, inference = _inference(at, x.device, as_in_example)
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    inference.step(x)
    assert not any(
        torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True)
    ), "SVI trains nothing"


def step(at: Architecture, x: Tensor) -> Step:
    """One `SVI.step` on the batch ``x``."""
    _trains(at, x)
    _, inference = _inference(at, x.device)
    return lambda: inference.step(x)


def epochs(at: Architecture, images: Tensor, as_in_example: bool = False) -> Train:
    """Passes of a DataLoader."""
    _trains(at, images[: at.batch_size], as_in_example)
    _, inference = _inference(at, images.device, as_in_example)
    loader = DataLoader(TensorDataset(images), batch_size=at.batch_size, shuffle=True)
    return timed(lambda: sum(inference.step(x) for (x,) in loader), len(images))


@torch.no_grad()
def renyi_log_px(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, num_samples: int, chunk: int = 500
) -> Tensor:
    """log p(x) by `RenyiELBO(alpha=0)`, the IWAE bound: one image at a time, as it sums the images'
    log weights.
    """
    pyro.enable_validation(False)
    pyro.clear_param_store()
    vae = VAE(encoder, decoder, encoder[-1].out_features // 2, x.dim() - 1)  # type: ignore[index,union-attr,operator]
    bound = RenyiELBO(alpha=0, num_particles=chunk, max_plate_nesting=1, vectorize_particles=True)
    found = []
    for image in x.split(1):
        parts = [-bound.loss(vae.model, vae.guide, image) for _ in range(num_samples // chunk)]
        found.append(torch.tensor(parts, dtype=torch.float64).logsumexp(0) - math.log(len(parts)))
    return torch.stack(found)


@torch.no_grad()
def vectorized_log_px(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, num_samples: int, chunk: int = 500
) -> Tensor:
    """log p(x) by Pyro's `vectorized_importance_weights`, one image at a time."""
    pyro.enable_validation(False)
    pyro.clear_param_store()
    vae = VAE(encoder, decoder, encoder[-1].out_features // 2, x.dim() - 1)  # type: ignore[index,union-attr,operator]
    found = []
    for image in x.split(1):
        parts = [
            vectorized_importance_weights(
                vae.model,
                vae.guide,
                image,
                num_samples=chunk,
                max_plate_nesting=1,
                normalized=False,
            )[0].flatten()
            for _ in range(num_samples // chunk)
        ]
        found.append(torch.cat(parts).logsumexp(0) - math.log(num_samples))
    return torch.stack(found)
