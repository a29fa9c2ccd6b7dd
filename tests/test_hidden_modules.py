"""Modules that only a closure knows: the first evaluation runs them in eval mode, and leaves them as they were."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import log_densities, log_marginal


@pytest.mark.parametrize("call", ["log_marginal", "log_densities"])
def test_the_first_evaluation_is_the_second(call: str) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    decoder = nn.Sequential(nn.Linear(2, 6), norm)
    assert norm.running_mean is not None
    norm.running_mean.fill_(3.0)
    before = norm.running_mean.clone()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    x, figures = torch.randn(20, 6), []
    for _ in range(2):
        if call == "log_marginal":
            result = log_marginal(model, guide, x, num_samples=20, device="cpu", compile="off")
            figures.append(result.log_px.mean().item())
        else:
            torch.manual_seed(1)
            figures.append(log_densities(model, guide, x).log_weights().mean().item())
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)
    assert torch.equal(norm.running_mean, before)
    assert norm.training and decoder.training
