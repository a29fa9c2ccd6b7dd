"""Sequences as a plain pair: log p(x) against the Kalman filter, and steps as one tensor."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.analysis.latents import steps_as_one

STEPS, MOVE, SEEN, NOISE, DRIFT = 5, 0.9, 1.3, 0.6, 0.8
"""T; z_t = MOVE z_{t−1} + DRIFT ε, x_t = SEEN z_t + NOISE ε."""


def model(x: Tensor, lengths: Tensor) -> None:
    """A linear-Gaussian state-space model from z_0 = 0, each row of its own length."""
    z = x.new_zeros(len(x))
    with pyro.plate("data", len(x)):
        for t in range(STEPS):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t + 1}", dist.Normal(MOVE * z, DRIFT))
                pyro.sample(f"x_{t + 1}", dist.Normal(SEEN * z, NOISE), obs=x[:, t])


def guide(x: Tensor, lengths: Tensor) -> None:
    """p(z_t | z_{t−1}, x_t)."""
    variance = 1 / (DRIFT**-2 + (SEEN / NOISE) ** 2)
    z = x.new_zeros(len(x))
    with pyro.plate("data", len(x)):
        for t in range(STEPS):
            mean = variance * (MOVE * z / DRIFT**2 + SEEN * x[:, t] / NOISE**2)
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t + 1}", dist.Normal(mean, variance**0.5))


def kalman(x: Tensor, lengths: Tensor) -> Tensor:
    """log p(x_1 … x_L), ``(N,)``, by the filter's predictions."""
    mean, variance = torch.zeros(len(x), dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)
    total = torch.zeros(len(x), dtype=x.dtype)
    for t in range(STEPS):
        mean, variance = MOVE * mean, MOVE**2 * variance + DRIFT**2
        spread = SEEN**2 * variance + NOISE**2
        log_px = torch.distributions.Normal(SEEN * mean, spread.sqrt()).log_prob(x[:, t])
        total = total + log_px.where(t < lengths, 0.0)
        gain = SEEN * variance / spread
        mean = mean + gain * (x[:, t] - SEEN * mean)
        variance = (1 - gain * SEEN) * variance
    return total


def data() -> tuple[Tensor, Tensor]:
    """Rows of the model, and their lengths."""
    torch.manual_seed(0)
    lengths = torch.arange(12) % STEPS + 1
    with poutine.trace() as traced, poutine.uncondition():
        model(torch.zeros(12, STEPS, dtype=torch.float64), torch.full((12,), STEPS))
    x = [traced.trace.nodes[f"x_{t + 1}"]["value"] for t in range(STEPS)]
    return torch.stack(x, -1), lengths


def test_log_px_is_the_kalman_filters() -> None:
    """Of rows of different lengths; what is behind a row's end is without effect."""
    x, lengths = data()
    options: dict[str, Any] = {"num_samples": 4000, "device": "cpu", "compile": "off"}
    found = pv.log_marginal(model, guide, x, lengths=lengths, **options)
    exact = kalman(x, lengths)
    assert ((found.log_px - exact).abs() < 5 * found.se + 1e-6).all()
    assert float((found.log_px - exact).abs().mean()) < 0.05
    assert found.protocol["quantity"] == "log p(x_obs | lengths)"
    padded = x.where(torch.arange(STEPS) < lengths.unsqueeze(-1), 7.0)
    again = pv.log_marginal(model, guide, padded, lengths=lengths, **options)
    torch.testing.assert_close(again.log_px, found.log_px)


def test_the_steps_come_back_as_one_tensor() -> None:
    x, lengths = data()
    found = pv.reconstruct(model, guide, x, lengths=lengths)
    assert set(found) == {"x"} and found["x"].shape == x.shape
    latent = pv.encode(model, guide, x, lengths=lengths)
    steps = [latent[f"z_{t + 1}"] for t in range(STEPS)]
    torch.testing.assert_close(found["x"], SEEN * torch.stack(steps, 1))
    drawn = pv.sample(model, 4000, like=x[:1], mean=False, lengths=torch.full((4000,), STEPS))
    (series,) = drawn.values()
    variance, expected = 0.0, []
    for _ in range(STEPS):
        variance = MOVE**2 * variance + DRIFT**2
        expected.append(SEEN**2 * variance + NOISE**2)
    torch.testing.assert_close(
        series.var(0), torch.tensor(expected, dtype=series.dtype), rtol=0.15, atol=0
    )
    many = {f"x_{t}": torch.full((2, 3), float(t)) for t in (10, 9, 11)}
    assert steps_as_one(many)["x"][0, :, 0].tolist() == [9.0, 10.0, 11.0]
    kept = {"x_1": torch.zeros(2), "y_1": torch.zeros(2), "y_2": torch.zeros(2, 3)}
    assert steps_as_one(kept).keys() == kept.keys()
