"""Modules that only a closure knows: the first evaluation runs them in eval mode, and leaves them
as they were.
"""

from functools import partial

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import fit, log_densities, log_marginal
from tests.support.grids import thinned


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


@pytest.mark.parametrize(("mode", "first"), thinned([True, False], ["evaluation", "training"]))
def test_modules_that_only_a_run_finds_run_in_the_right_mode_and_keep_their_own(
    first: str, mode: bool
) -> None:
    """In a dict, where no closure shows them, whichever call meets them: train mode is a training's
    alone.
    """
    torch.manual_seed(0)
    modes: list[bool] = []

    class Noted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            return super().forward(x)

    nets = {"decode": Noted(2, 4).train(mode), "encode": Noted(4, 2).train(not mode)}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(nets["decode"](z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(nets["encode"](x), 0.5).to_event(1))

    x = torch.randn(16, 4)
    for call in (first, "evaluation", "training", "evaluation"):
        if call == "training":
            fit(
                model,
                guide,
                x,
                "Trace_ELBO",
                num_steps=4,
                batch_size=8,
                compile="off",
                progress=False,
            )
            assert modes[-8:] == [True] * 8  # four steps of two nets
        else:
            log_marginal(model, guide, x, num_samples=20, device="cpu", compile="off")
            assert modes[-2:] == [False] * 2
        assert (nets["decode"].training, nets["encode"].training) == (mode, not mode)


class Held(nn.Module):
    """Called by nobody: its layers are, and one of its parameters in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decode, self.encode = nn.Linear(2, 4), nn.Linear(4, 2)
        self.noise = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize("form", ["closure", "partial", "lambda", "function in a function"])
def test_what_only_train_mode_reaches_is_trained_in_every_form(form: str) -> None:
    held = Held()

    def model_of(held: Held, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(held.decode(z), 1.0).to_event(1), obs=x)

    def guide_of(held: Held, x: Tensor) -> None:
        x = x + held.noise if held.training else x
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(held.encode(x), 0.5).to_event(1))

    def model(x: Tensor) -> None:
        model_of(held, x)

    def guide(x: Tensor) -> None:
        guide_of(held, x)

    programs = {
        "closure": (model, guide),
        "partial": (partial(model_of, held), partial(guide_of, held)),
        "lambda": (lambda x: model_of(held, x), lambda x: guide_of(held, x)),
        "function in a function": (lambda x: model(x), lambda x: guide(x)),
    }
    held.eval()
    fit(*programs[form], torch.randn(16, 4), "Trace_ELBO", num_steps=5, progress=False)
    assert held.noise.abs().max() > 0, "trained in train mode"
    assert not held.training, "and left in the mode that it had"
