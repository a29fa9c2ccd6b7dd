"""How a training runs: strangers' programs eagerly, our parts traced; what a callback changes is
followed or told.
"""

from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import UserError, ais, fit, guides, log_marginal, models
from pyro_vae.data.batches import Resident
from pyro_vae.evaluation import tiling

X = (torch.rand(48, 6, generator=torch.Generator().manual_seed(0)) < 0.4).double()
QUICK: dict[str, Any] = {
    "batch_size": 16,
    "schedule": "constant",
    "learning_rate": 0.02,
    "progress": False,
}


class Annealed(nn.Module):
    """A pair whose temperature and β are plain attributes; ``noise`` is a parameter of train mode
    alone.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.decode, self.encode = nn.Linear(2, 6).double(), nn.Linear(6, 4).double()
        self.noise = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        self.temperature, self.beta = 2.0, 0.1

    def model(self, x: Tensor) -> None:
        pyro.module("annealed", self)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Bernoulli(logits=self.decode(z) / self.temperature).to_event(1), obs=x
            )

    def guide(self, x: Tensor) -> None:
        pyro.module("annealed", self)
        if self.training:
            x = x + self.noise
        loc, scale = self.encode(x).chunk(2, -1)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def changed(pair: Annealed, epoch: int) -> None:
    """What a schedule of the user's does after an epoch."""
    pair.temperature, pair.beta = max(1.0, 2.0 - 0.25 * epoch), min(1.0, 0.1 + 0.2 * epoch)
    pair.decode.requires_grad_(epoch not in (2, 3))


def by_hand(pair: Annealed, num_epochs: int) -> list[float]:
    """The same training by Pyro's ELBO and torch's optimiser, as their users write it."""
    optimizer, losses = torch.optim.Adam(pair.parameters(), lr=0.02, foreach=False), []

    source = Resident(X, {}, 16, X.device)
    torch.manual_seed(0)
    for epoch in range(1, num_epochs + 1):
        total = 0.0
        for x, _ in source.shuffled(0, epoch):
            optimizer.zero_grad()
            loss = pyro.infer.Trace_ELBO().differentiable_loss(pair.model, pair.guide, x) / len(x)
            loss.backward()
            optimizer.step()
            total += loss.item() / 3
        losses.append(total)
        changed(pair, epoch)
    return losses


@pytest.mark.filterwarnings(
    "ignore:.*was not registered in the param store"
)  # Pyro's own, of the loop by hand
def test_what_a_callback_changes_is_followed_as_in_pyro() -> None:
    """A temperature, a scale, parts that are frozen and freed, a parameter that train mode alone
    reaches.
    """
    ours, theirs = Annealed(), Annealed()
    ends = [lambda end: changed(ours, end.train.epoch)]
    history = fit(ours.model, ours.guide, X, "Trace_ELBO", num_epochs=7, callbacks=ends, **QUICK)
    expected = by_hand(theirs, 7)
    assert history.compile == "off" and "compile='graph'" in history.note
    assert [record.loss for record in history.train] == pytest.approx(expected, rel=1e-9)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)
    assert ours.noise.abs().max() > 0.01
    pyro.clear_param_store()


def test_a_traced_step_that_no_longer_is_the_programs_ends_in_a_sentence() -> None:
    """Asked for, tracing is the user's word; it is looked at again at an epoch's end."""
    pair = Annealed()
    pair.noise.requires_grad_(False)

    def anneal(end: Any) -> None:
        pair.temperature = 0.5

    with pytest.raises(UserError, match="step differs from the programs"):
        fit(
            pair.model,
            pair.guide,
            X,
            "Trace_ELBO",
            num_epochs=400,
            compile="graph",
            callbacks=[anneal],
            **QUICK,
        )


def test_a_class_says_for_itself_that_its_python_decides_nothing() -> None:
    """Parts of the package are traced by default, a subclass of one's own only where it says ``pure
    = True``.
    """

    class Mine(guides.MeanField):
        pass

    class Pure(guides.MeanField):
        pure = True

    class Hooked(guides.MeanField):
        pure = True

    x = X.float()
    for kind, tier in (
        (guides.MeanField, "graph"),
        (Mine, "off"),
        (Pure, "graph"),
        (Hooked, "off"),
    ):
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(2, (6,), hidden=(4,))
        )
        guide = kind((6,), 2, hidden=(4,))
        if kind is Hooked:
            guide.register_forward_hook(lambda *_: None)
        history = fit(model, guide, x, num_steps=2, **QUICK)
        assert history.compile == tier, (kind, history.note)


def test_fit_trains_inside_no_grad() -> None:
    pair = Annealed()
    before = pair.decode.weight.detach().clone()
    with torch.no_grad():
        fit(pair.model, pair.guide, X, "Trace_ELBO", num_steps=2, **QUICK)
    assert not torch.equal(before, pair.decode.weight)


def bright(x: Tensor) -> float:
    """A statistic of the whole batch, the same in any order of its rows, read by Python."""
    return 0.2 + sum(x.flatten().tolist()) / x.numel()


def by_brightness() -> tuple[Any, Any]:
    torch.manual_seed(2)
    decode, encode = nn.Linear(2, 6), nn.Linear(6, 2)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=bright(x) * decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 0.8).to_event(1))

    return model, guide


def test_a_step_is_held_against_the_programs_on_other_rows() -> None:
    """What Python reads from a batch is a constant of the trace: right on that batch, in any order,
    and on no other.
    """
    x, losses = X.float(), []
    for tier in ("off", "graph"):
        model, guide = by_brightness()
        history = fit(model, guide, x, "Trace_ELBO", num_steps=6, compile=tier, **QUICK)
        losses.append([record.loss for record in history.train])
    assert history.compile == "off" and "differs from the eager one" in history.note
    assert losses[0] == losses[1]


def known_rows() -> tuple[Any, Any]:
    """Python reads the very pixels: a trace has those of its own batch, of which each image's own
    law is right.
    """
    torch.manual_seed(2)
    decode, encode = nn.Linear(2, 6).double(), nn.Linear(6, 2).double()

    def as_python_has_it(x: Tensor) -> Tensor:
        return torch.tensor(x.tolist(), dtype=x.dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(as_python_has_it(x)[..., :2], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(as_python_has_it(x)), 0.8).to_event(1))

    return model, guide


@pytest.mark.parametrize("how", ["importance", "annealed"])
def test_an_evaluation_is_held_against_the_programs_on_other_rows(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tile's images would be scored rightly, and all others as if they were those; tiles
    of 4.
    """
    monkeypatch.setitem(tiling.ROWS, "cpu", 8 if how == "importance" else 16)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    options: dict[str, dict[str, Any]] = {
        "importance": {"num_samples": 20},
        "annealed": {"num_steps": 2, "num_chains": 4, "num_leapfrog": 1},
    }
    estimate = {"importance": log_marginal, "annealed": ais}[how]
    found = [
        estimate(*known_rows(), x, device="cpu", compile=tier, **options[how])
        for tier in ("off", "graph")
    ]
    torch.testing.assert_close(found[0].log_px, found[1].log_px, rtol=0, atol=1e-9)


class Centred(nn.Module):
    """Keeps a running mean in a buffer that each run assigns anew, and that enters the same run."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    def forward(self, h: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0) if self.training else self.mean
        return h * (1.0 + self.mean)


@pytest.mark.parametrize("norm", ["spectral", "batch", "weight", "assigned"])
def test_a_net_that_keeps_statistics_is_held_against_itself(norm: str) -> None:
    """Each run of a check begins from the same buffers: spectral norm's enter the very step,
    BatchNorm's the next.
    """
    trained = []
    for tier in ("off", "graph"):
        pair = Annealed()
        if norm == "batch":
            pair.encode = nn.Sequential(pair.encode, nn.BatchNorm1d(4).double())
        elif norm == "assigned":
            pair.encode = nn.Sequential(pair.encode, Centred())
        else:
            pair.encode = getattr(nn.utils.parametrizations, f"{norm}_norm")(pair.encode)
        history = fit(
            pair.model,
            pair.guide,
            X,
            "Trace_ELBO",
            num_epochs=12,
            compile=tier,
            callbacks=[lambda end: None],
            **QUICK,
        )
        assert history.compile == tier, history.note
        trained.append([p.detach() for p in (*pair.parameters(), *pair.buffers())])
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
