"""A training that stops being finite says at which step and site, and leaves the parameters of the
step before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import Diverged, UserError, fit
from pyro_vae.compile.trace import missing_compiler
from pyro_vae.data.loaders import make_source
from tests.support.grids import thinned
from tests.support.pairs import LATENT, PIXELS, Decoder, Encoder, binary_images
from tests.support.training import CPU, QUICK, same, state_of

X = binary_images(48)
POISON = X.clone()
POISON[7] = 9.0  # the image at which each program below breaks
OPTIONS: dict[str, Any] = {**QUICK, "num_epochs": 5, "schedule": "constant", "learning_rate": 0.01}


class Model(PyroModule):
    """Normal pixels; what ``breaks`` names is not finite for images of nines."""

    def __init__(self, breaks: str) -> None:
        super().__init__()
        self.net, self.breaks = Decoder(), breaks
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        """p(x, z)."""
        poisoned = (x > 5).any(-1, keepdim=True)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            location = self.net(z)
            if self.breaks == "the model's location":
                location = torch.where(poisoned, torch.nan, location)
            if self.breaks == "a gradient":  # √(w·0): 0, with a slope that is 0/0
                location = location + torch.sqrt(self.w * (~poisoned).float())
            pyro.sample("x", dist.Normal(location, 1.0).to_event(1), obs=x)
            if self.breaks == "a factor":
                pyro.factor("extra", torch.where(poisoned.squeeze(-1), -torch.inf, 0.0))


class Guide(PyroModule):
    """A mean field."""

    def __init__(self, breaks: str, norm: bool = False) -> None:
        super().__init__()
        self.net, self.breaks = Encoder(), breaks
        self.norm: nn.Module = nn.BatchNorm1d(PIXELS) if norm else nn.Identity()

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        poisoned = (x > 5).any(-1, keepdim=True)
        with pyro.plate("data", len(x)):
            seen = torch.where(poisoned, torch.inf, x) if self.breaks == "a buffer" else x
            loc, scale = self.net(self.norm(seen))
            if self.breaks == "the guide's scale":
                scale = torch.where(poisoned, torch.inf, scale)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


SITES = {
    "the model's location": "site 'x' of the model, whose distribution has a loc",
    "the guide's scale": "site 'z' of the guide, whose distribution has a scale",
    "a gradient": "site 'x' of the model, the gradient of whose log density by 'w' of the model",
    "a factor": "site 'extra' of the model",
    "a buffer": "site 'z' of the guide",
}


def pair(breaks: str) -> tuple[Any, Any]:
    """The same parameters each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(breaks), Guide(breaks, norm=breaks == "a buffer")


def visits(num_epochs: int) -> list[int]:
    """The steps, counted from 1, whose batch has the broken image."""
    source = make_source(POISON, {}, 16, CPU)
    batches = [x for epoch in range(1, num_epochs + 1) for x, _ in source.shuffled(0, epoch)]
    return [step for step, x in enumerate(batches, 1) if bool((x > 5).any())]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> int:
    """The broken image comes into the third epoch alone, as a field of a program would: the step
    there.
    """
    step = next(step for step in visits(3) if step > 6)
    from pyro_vae.data.batches import Resident

    shuffled = Resident.shuffled

    def clean(self: Resident, seed: int, epoch: int, skip: int = 0) -> Any:
        for x, fields in shuffled(self, seed, epoch, skip):
            yield (x if epoch == 3 else x.clamp(max=1.0)), fields

    monkeypatch.setattr(Resident, "shuffled", clean)
    return step


INDUCTOR = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_compiler(CPU)), reason=missing_compiler(CPU) or "there is a compiler"
    ),
]
COMPILED = pytest.param("a gradient", "inductor", marks=INDUCTOR)


@pytest.mark.parametrize(("breaks", "tier"), [*thinned(SITES, ["off", "graph"]), COMPILED])
def test_the_step_the_rate_and_the_site_are_named(breaks: str, tier: str, later: int) -> None:
    model, guide = pair(breaks)
    with pytest.raises(Diverged, match=SITES[breaks]) as error:
        fit(model, guide, POISON, **{**OPTIONS, "compile": tier})
    assert error.value.step == later and error.value.learning_rate == 0.01
    assert (
        f"step {later}" in str(error.value)
        and "learning rate 0.01" in str(error.value)
        and "\n" not in str(error.value)
    )
    until = pair(breaks)
    fit(*until, POISON, **{**OPTIONS, "compile": tier, "num_steps": later - 1})
    assert same(
        state_of(model, guide), state_of(*until)
    )  # the parameters and buffers of the last finite step


def test_the_state_of_the_last_finite_step_is_kept(later: int) -> None:
    model, guide = pair("a gradient")
    with pytest.raises(Diverged) as error:
        fit(model, guide, POISON, **OPTIONS)
    state = error.value.state
    assert state is not None and state.step == later - 1 and state.epochs == 2
    again = pair("a gradient")
    with pytest.raises(Diverged) as second:
        fit(*again, POISON, resume=state, **OPTIONS)
    assert second.value.step == later and same(state_of(model, guide), state_of(*again))


@pytest.mark.parametrize(("breaks", "optimizer"), thinned(SITES, ["Adam", "RMSprop"]))
def test_skipped_steps_leave_no_trace(breaks: str, optimizer: str) -> None:
    """The broken batch is drawn, and nothing else of it remains: parameters, buffers, records."""
    model, guide = pair(breaks)
    history = fit(model, guide, POISON, on_divergence="skip", optimizer=optimizer, **OPTIONS)
    assert history.skipped == len(visits(5)) == 5 and "5 steps skipped" in str(history)
    assert all(bool(torch.isfinite(t).all()) for t in state_of(model, guide))
    assert all(abs(record.loss) < 1e3 for record in history.train) and history.num_steps == 15


def test_an_epoch_of_which_nothing_is_left_ends_the_training() -> None:
    with pytest.raises(Diverged, match="every step of epoch 1 was skipped"):
        fit(*pair("a factor"), POISON, on_divergence="skip", **{**OPTIONS, "batch_size": 48})


def test_a_step_that_is_too_long_is_named_without_a_site() -> None:
    """Everything is finite but the parameters after the step."""
    with pytest.raises(Diverged, match=r"step 1, learning rate 1e\+39") as error:
        fit(*pair(""), X, **{**OPTIONS, "optimizer": "Adam", "learning_rate": 1e39})
    assert "a gradient or parameter is not finite" in str(error.value) and error.value.site == ""


def test_a_dataloader_is_not_run_again(later: int) -> None:
    loader = DataLoader(TensorDataset(POISON), batch_size=16, shuffle=True)
    model, guide = pair("a factor")
    before = state_of(model, guide)
    with pytest.raises(Diverged, match="a DataLoader can't repeat its order") as error:
        fit(model, guide, loader, **OPTIONS)
    assert error.value.step is None and same(before, state_of(model, guide))


def test_chance_that_is_not_torchs_is_admitted(later: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come again when the steps are repeated is said to be so; the parameters are
    finite all the same.
    """
    calls: list[int] = []
    original: Callable[..., Any] = Model.forward

    def once(self: Model, x: Tensor) -> None:
        calls.append(1)
        self.breaks = "a factor" if len(calls) < 40 else ""
        original(self, x)

    monkeypatch.setattr(Model, "forward", once)
    model, guide = pair("a factor")
    with pytest.raises(Diverged):
        fit(model, guide, POISON, **{**OPTIONS, "num_epochs": 20})
    assert all(bool(torch.isfinite(t).all()) for t in state_of(model, guide))


def test_the_choice_is_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'skip'"):
        fit(*pair(""), X, on_divergence="skp", **OPTIONS)
