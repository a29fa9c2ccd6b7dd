"""Pairs with constrained and structured latents whose log p(x) is known, and guides that are near
the posterior.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from tests.support.exact import Exact, gamma_poisson, two_levels

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def off_gamma(num_images: int = 40) -> Exact:
    """Gamma–Poisson with a Gamma guide that is too wide and too low."""
    case = gamma_poisson(num_images)

    def guide(x: Tensor) -> None:
        with pyro.plate("n", x.shape[0]):
            pyro.sample(
                "rate", dist.Gamma(0.6 * (2.5 + x.squeeze(-1)), torch.tensor(1.9, **DOUBLE))
            )

    return Exact(case.model, guide, case.x, case.log_px)


def mean_field_levels(num_images: int = 40) -> Exact:
    """Two levels, under a guide of two independent sites."""
    case = two_levels(num_images)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("b", dist.Normal(0.8 * x[:, 0], 0.45))
            pyro.sample("a", dist.Normal(0.5 * x[:, 0], 0.6))

    return Exact(case.model, guide, case.x, case.log_px)


def simplex(num_images: int = 40) -> Exact:
    """π ~ Dirichlet(α), x ~ Multinomial(5, π), with a guide that trusts the counts by half."""
    alpha = torch.tensor([2.0, 1.0, 3.0], **DOUBLE)

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            share = pyro.sample("share", dist.Dirichlet(alpha))
            pyro.sample("counts", dist.Multinomial(5, probs=share), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("share", dist.Dirichlet(alpha + 0.5 * x))

    with torch.random.fork_rng():
        torch.manual_seed(1)
        law = dist.DirichletMultinomial(alpha, torch.tensor(5.0, **DOUBLE))
        x = law.sample((num_images,))
    return Exact(model, guide, x, law.log_prob(x))


def inner_plate(num_images: int = 40) -> Exact:
    """Three latents of an image in a plate of their own, at dimension −2; the guide is too narrow."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", x.shape[0], dim=-1), pyro.plate("parts", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
            pyro.sample("x", dist.Normal(z, 0.6), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", x.shape[0], dim=-1), pyro.plate("parts", 3, dim=-2):
            pyro.sample("z", dist.Normal(x.T / 1.36, 0.8 * 0.6 / 1.36**0.5))

    x = 1.36**0.5 * torch.randn(num_images, 3, generator=torch.Generator().manual_seed(4), **DOUBLE)
    return Exact(model, guide, x, dist.Normal(0.0, 1.36**0.5).log_prob(x).sum(-1))


SPACES = {
    "gamma": off_gamma,
    "two sites": mean_field_levels,
    "simplex": simplex,
    "inner plate": inner_plate,
}
