"""``fit`` and ``log_marginal`` hold the user's own pair against stock Pyro and torch, and leave no
mark.
"""

import random
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import guides, models, objectives

SHAPE = (1, 4, 4)
DATA = (torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def vae() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = models.GenerativeModel(
        prior=models.StandardNormal(2), likelihood=models.Bernoulli(2, SHAPE, hidden=(8,))
    )
    return model, guides.MeanField(SHAPE, 2, hidden=(8,))


@pytest.mark.parametrize(
    ("objective", "held", "compile"),
    [
        ("Trace_ELBO(num_particles=3)", "loss, gradient, step, independence", "off"),
        ("TraceMeanField_ELBO", "loss, gradient, step, independence", "graph"),
        ("IWAE(5)", "loss of Trace_ELBO, gradient, step, independence", "off"),
        (infer.Trace_ELBO(), "loss and gradient are its own, step, independence", "graph"),
    ],
)
def test_the_line_says_what_was_held(objective: Any, held: str, compile: str) -> None:
    note = pv.fit(
        *vae(), DATA, objective=objective, num_steps=1, compile=compile, progress=False
    ).note
    assert note.endswith(f"checked against pyro.infer {pyro.__version__}: {held}")


def test_the_protocol_says_what_was_held() -> None:
    for result in (
        pv.log_marginal(*vae(), DATA, num_samples=5, compile="off"),
        pv.ais(*vae(), DATA, num_steps=2, num_chains=1, num_leapfrog=1, compile="off"),
    ):
        assert (
            result.protocol["checked"]
            == f"against pyro.infer {pyro.__version__}: log weights, independence"
        )
        assert f"checked against pyro.infer {pyro.__version__}: log weights, independence" in str(
            result
        )


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_wrong_loss_or_gradient_is_refused(wrong: str) -> None:
    class Wrong(objectives.Trace_ELBO):
        """Pyro's, as it says, but for one percent."""

        def estimate(self, *arguments: Any) -> Any:
            found = super().estimate(*arguments)
            factor = 1.01 if wrong == "loss" else 1.0
            return type(found)(
                found.loss * 1.01 + (factor - 1.01) * found.loss.detach(),
                *list(vars(found).values())[1:],
            )

    class Right(Wrong):
        def estimate(self, *arguments: Any) -> Any:
            return objectives.Trace_ELBO.estimate(self, *arguments)

    pv.fit(*vae(), DATA, objective=Right(), num_steps=1, compile="off", progress=False)
    with pytest.raises(
        pv.UserError, match=f"the {wrong} of this pair .* differs from pyro.infer's"
    ):
        pv.fit(*vae(), DATA, objective=Wrong(), num_steps=1, compile="off", progress=False)


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_fused_kernel_that_is_wrong_is_refused(compile: str) -> None:
    """Under a staged step too, whose own check holds the gradients alone of another optimiser than
    Adam.
    """

    class Fused(torch.optim.SGD):
        """Plain where it is asked for, else one percent too far."""

        def step(self, closure: Any = None) -> Any:
            plain = all(group["foreach"] is False for group in self.param_groups)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            p -= group["lr"] * p.grad * (1.0 if plain else 1.01)

    Fused.__module__ = "torch.optim.fused"
    with pytest.raises(pv.UserError, match="one step of Fused differs from torch's unfused one"):
        pv.fit(
            *vae(),
            DATA,
            optimizer=lambda ps: Fused(ps, lr=0.1),
            num_steps=1,
            compile=compile,
            progress=False,
        )


class Counting(nn.Module):
    """Python state that moves in train mode, and two kinds of buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.norm = nn.Linear(16, 2), nn.BatchNorm1d(2)
        self.count, self.average = 0, torch.zeros(16)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.average.mul_(0.9).add_(0.1 * x.mean(0))
        mean: Tensor = self.norm(self.enc(x))
        return mean


def test_nothing_is_left_of_the_look() -> None:
    """One step of ``fit`` moves a counter, a moving average and BatchNorm once; no random state is
    moved by its end.
    """
    torch.manual_seed(0)
    enc, dec = Counting(), nn.Linear(2, 16)
    x = torch.randn(8, 16)

    def model(x: Tensor) -> None:
        pyro.module("dec", dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(dec(z), 1.0 + random.random() + np.random.rand()).to_event(1),
                obs=x,
            )

    def guide(x: Tensor) -> None:
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(enc(x), 0.5).to_event(1))

    before = torch.get_rng_state()
    pv.fit(
        model,
        guide,
        x,
        num_steps=1,
        batch_size=8,
        learning_rate=1e-9,
        objective="Trace_ELBO",
        progress=False,
    )
    assert enc.count == 1
    assert int(enc.norm.num_batches_tracked) == 1
    torch.testing.assert_close(enc.average, 0.1 * x.mean(0))
    assert torch.equal(torch.get_rng_state(), before)
    pv.log_marginal(model, guide, x, num_samples=3)
    assert enc.count == 1


def test_programs_that_change_at_each_run_are_said_to_be_unchecked() -> None:
    calls = [0]
    torch.manual_seed(0)
    dec = nn.Linear(2, 16)

    def model(x: Tensor) -> None:
        calls[0] += 1
        pyro.module("dec", dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(dec(z), 1.0 + 0.1 * calls[0]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 0.5).to_event(1))

    note = pv.fit(
        model, guide, torch.randn(8, 16), num_steps=1, objective="Trace_ELBO", progress=False
    ).note
    assert "not the loss, because the programs give another result at each run" in note


def test_an_attribute_that_has_become_a_parameter_stays_one() -> None:
    """A module that builds itself as it is first trained: an attribute put back would hide its
    parameter.
    """

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.scale, self.built = nn.Linear(16, 2), torch.ones(()), list[bool]()

        def forward(self, x: Tensor) -> Tensor:
            if self.training and not self.built:
                self.built.append(True)
                self.scale = nn.Parameter(vars(self).pop("scale"))
            mean: Tensor = self.scale * self.enc(x)
            return mean

    torch.manual_seed(0)
    enc, dec, x = Lazy(), nn.Linear(2, 16), torch.randn(8, 16)

    def model(x: Tensor) -> None:
        pyro.module("dec", dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(dec(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(enc(x), 0.5).to_event(1))

    pv.fit(model, guide, x, num_steps=2, objective="Trace_ELBO", progress=False)
    assert "scale" not in vars(enc)
    assert isinstance(enc.scale, nn.Parameter)
