"""Small models in float64 whose log p(x) and posterior are known, written as plain Pyro functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Exact:
    """A pair, images drawn from its model, and the exact log p(x) of each, ``(N,)``."""

    model: Any
    guide: Any
    x: Tensor
    log_px: Tensor
    mean_field_gap: float = float(
        "nan"
    )  # log p(x) − ELBO of the best mean-field Gaussian, for every image

    @property
    def mean(self) -> float:
        """The exact mean of log p(x)."""
        return float(self.log_px.mean())


def ppca(
    num_images: int = 40,
    num_pixels: int = 6,
    latent_dim: int = 3,
    widen: float = 1.0,
    shift: float = 0.0,
) -> Exact:
    """x = W z + b + σ ε. The guide is the exact posterior, its sd times ``widen``, its mean moved
    by ``shift`` sd.

    Marginal N(b, WWᵀ + σ²I); posterior N(M⁻¹Wᵀ(x − b), σ²M⁻¹) with M = WᵀW + σ²I (Tipping & Bishop
    1999, equation 7).
    """
    random = torch.Generator().manual_seed(11)
    weight = torch.randn(num_pixels, latent_dim, generator=random, dtype=torch.float64)
    bias = torch.randn(num_pixels, generator=random, dtype=torch.float64)
    sigma = 0.7
    eye = torch.eye(num_pixels, dtype=torch.float64)
    marginal = dist.MultivariateNormal(bias, weight @ weight.T + sigma**2 * eye)
    precision = weight.T @ weight + sigma**2 * torch.eye(latent_dim, dtype=torch.float64)
    root = torch.linalg.cholesky(sigma**2 * torch.linalg.inv(precision))
    to_mean = torch.linalg.solve(precision, weight.T)
    zeros = torch.zeros(latent_dim, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("pixels", dist.Normal(z @ weight.T + bias, sigma).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = (x - bias) @ to_mean.T + shift * root.sum(-1)
        with pyro.plate("images", x.shape[0]):
            pyro.sample("latent", dist.MultivariateNormal(loc, scale_tril=widen * root))

    noise = torch.randn(num_images, num_pixels, generator=random, dtype=torch.float64)
    x = bias + noise @ marginal.scale_tril.T
    inverse = (
        precision / sigma**2
    )  # the posterior's: the best mean-field q has its mean, and variances 1/P_ii
    gap = 0.5 * float(inverse.diagonal().log().sum() - inverse.logdet())
    return Exact(model, guide, x, marginal.log_prob(x), gap)


def two_levels(num_images: int = 30) -> Exact:
    """a ~ N(0, 1), b | a ~ N(a, s²), x | b ~ N(b, t²), with the exact bottom-up guide q(b | x) q(a
    | b).
    """
    s, t = 0.8, 0.5
    zero = torch.zeros((), dtype=torch.float64)
    var_b = 1.0 + s**2  # b ~ N(0, 1 + s²)
    gain_b, gain_a = var_b / (var_b + t**2), 1.0 / var_b

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Normal(zero, 1.0))
            b = pyro.sample("b", dist.Normal(a, s))
            pyro.sample("x", dist.Normal(b.unsqueeze(-1), t).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            b = pyro.sample("b", dist.Normal(gain_b * x[:, 0], (gain_b * t**2) ** 0.5))
            pyro.sample("a", dist.Normal(gain_a * b, (gain_a * s**2) ** 0.5))

    x = (
        torch.randn(num_images, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        * 1.4
    )
    return Exact(model, guide, x, dist.Normal(zero, (var_b + t**2) ** 0.5).log_prob(x[:, 0]))


def gamma_poisson(num_images: int = 30, a: float = 2.5, b: float = 1.5) -> Exact:
    """λ ~ Gamma(a, b), x ~ Poisson(λ): marginal NegBin(a, b/(b + 1)) in SciPy's convention,
    posterior Gamma(a + x, b + 1).
    """
    shape = torch.tensor(a, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("n", x.shape[0]):
            rate = pyro.sample("rate", dist.Gamma(shape, b))
            pyro.sample("count", dist.Poisson(rate), obs=x.squeeze(-1))

    def guide(x: Tensor) -> None:
        with pyro.plate("n", x.shape[0]):
            pyro.sample("rate", dist.Gamma(shape + x.squeeze(-1), b + 1.0))

    x = torch.arange(num_images, dtype=torch.float64).remainder(9).unsqueeze(-1)
    return Exact(
        model, guide, x, torch.from_numpy(stats.nbinom.logpmf(x[:, 0].numpy(), a, b / (b + 1.0)))
    )
