"""Two small binary VAEs in float64, written as plain Pyro: one whose p(x) is a trapezoid sum, one
with a flow guide.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor

from tests.support.exact import Exact

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def every_image(num_pixels: int) -> Tensor:
    """All 2^D binary images, ``(2^D, D)``."""
    codes = torch.arange(2**num_pixels)
    return ((codes.unsqueeze(-1) >> torch.arange(num_pixels)) & 1).double()


def tanh_decoder(latent_dim: int, num_pixels: int, dtype: torch.dtype = torch.float64) -> Any:
    """Logits of z through ten tanh units with modest slopes."""
    random = torch.Generator().manual_seed(2)
    into = torch.randn(latent_dim, 10, generator=random, **DOUBLE)
    bias = 0.5 * torch.randn(10, generator=random, **DOUBLE)
    out = 0.8 * torch.randn(10, num_pixels, generator=random, **DOUBLE)
    into, bias, out = into.to(dtype), bias.to(dtype), out.to(dtype)
    return lambda z: torch.tanh(z @ into + bias) @ out


def latent_grid(latent_dim: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes ``(n^d, d)`` on [−12, 12]^d and the log of the trapezoid rule's weights, times the
    prior's density.
    """
    line = torch.linspace(-12.0, 12.0, nodes, **DOUBLE)
    z = torch.cartesian_prod(*[line] * latent_dim).reshape(-1, latent_dim)
    step = (line[1] - line[0]).log()  # the ends, where the prior is e^−72, count as whole
    return z, dist.Normal(torch.zeros(latent_dim, **DOUBLE), 1.0).to_event(1).log_prob(
        z
    ) + latent_dim * step


def by_trapezoid(
    latent_dim: int, num_pixels: int, nodes: int = 201
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), posterior mean and sd of every image."""
    x, (z, log_prior) = every_image(num_pixels), latent_grid(latent_dim, nodes)
    logits = tanh_decoder(latent_dim, num_pixels)(z)
    joint = (
        x @ logits.T - torch.nn.functional.softplus(logits).sum(-1) + log_prior
    )  # (images, nodes)
    posterior = joint.softmax(-1)
    mean = posterior @ z
    return joint.logsumexp(-1), mean, (posterior @ z.square() - mean.square()).sqrt()


def binary_model(latent_dim: int, num_pixels: int, dtype: torch.dtype = torch.float64) -> Any:
    """z ~ N(0, I), x ~ Bernoulli(tanh net of z)."""
    decoder, zeros = (
        tanh_decoder(latent_dim, num_pixels, dtype),
        torch.zeros(latent_dim, dtype=dtype),
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return model


def nonlinear(latent_dim: int, num_pixels: int = 6, widen: float = 1.2, times: int = 1) -> Exact:
    """Every binary image, ``times`` over; the guide is a Gaussian of the posterior's mean and
    ``widen`` times its sd.
    """
    log_px, mean, sd = by_trapezoid(latent_dim, num_pixels)
    powers = 2.0 ** torch.arange(num_pixels, **DOUBLE)

    def guide(x: Tensor) -> None:
        row = (x @ powers).round().long()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean[row], widen * sd[row]).to_event(1))

    return Exact(
        binary_model(latent_dim, num_pixels),
        guide,
        every_image(num_pixels).repeat(times, 1),
        log_px.repeat(times),
    )


def with_flow(dtype: torch.dtype = torch.float64, num_pixels: int = 8) -> Exact:
    """Two latents, all 256 images, and an untrained inverse autoregressive flow on a base that
    knows little of x.
    """
    with torch.random.fork_rng():
        torch.manual_seed(5)
        flow = affine_autoregressive(2, hidden_dims=[6]).to(dtype)
        to_loc = 0.15 * torch.randn(num_pixels, 2, dtype=dtype)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal((x - 0.5) @ to_loc, torch.tensor(1.1, dtype=dtype)).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    x = every_image(num_pixels).to(dtype)
    return Exact(binary_model(2, num_pixels, dtype), guide, x, by_trapezoid(2, num_pixels)[0])
