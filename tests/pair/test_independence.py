"""Images that depend on each other have no log p(x) each: refused by what scores, told by what
trains.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn import functional

import pyro_vae as pv
from pyro_vae import guides, models

Change = Callable[[Tensor], Tensor]
log_marginal = partial(pv.log_marginal, compile="off")  # the check is before anything is staged


def same(x: Tensor) -> Tensor:
    return x


def pair(of_x: Change = same, of_z: Change = same, of_guide: Change = same) -> tuple[Any, Any]:
    """A Gaussian VAE: ``of_x`` is added to the mean, ``of_z`` and ``of_guide`` change the codes and
    the encoder's input.
    """
    torch.manual_seed(1)
    dec, enc = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(x: Tensor) -> None:
        pyro.module("dec", dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            shift = 0.0 if of_x is same else of_x(x)
            pyro.sample("x", dist.Normal(dec(of_z(z)) + shift, 0.7).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(enc(of_guide(x)), 0.8).to_event(1))

    return model, guide


DEPENDENT: dict[str, tuple[str, Change]] = {
    "the second neighbour": ("of_x", lambda x: x.roll(2, 0)),
    "the one before, but the first": ("of_x", lambda x: torch.cat((0 * x[:1], x[:-1]))),
    "the one after, but the last": ("of_x", lambda x: torch.cat((x[1:], 0 * x[:1]))),
    "the largest": ("of_x", lambda x: x.amax(0)),
    "the rank": ("of_x", lambda x: x.argsort(0).argsort(0).float()),
    "the position": ("of_x", lambda x: torch.arange(len(x), dtype=x.dtype).unsqueeze(-1)),
    "attention over rows": ("of_x", lambda x: (x @ x.T).softmax(-1) @ x),
    "codes less their mean": ("of_z", lambda z: z - z.mean(-2, keepdim=True)),
    "batch statistics in eval mode": (
        "of_z",
        lambda z: functional.batch_norm(z, None, None, training=True),
    ),
    "inputs standardised by batch": ("of_guide", lambda x: (x - x.mean(0)) / x.std(0)),
    "a set's encoder": ("of_guide", lambda x: x + x.cumsum(0)),
}
DATA = torch.randn(30, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", DEPENDENT)
def test_images_that_depend_on_each_other_are_not_scored(kind: str) -> None:
    where, change = DEPENDENT[kind]
    model, guide = pair(**{where: change})
    site = "'z' of the guide" if where == "of_guide" else "'x' of the model"
    with pytest.raises(pv.UserError, match=f"site {site} depends on the other images"):
        log_marginal(model, guide, DATA, num_samples=10)
    assert f"site {site} depends on the other images" in str(pv.check_pair(model, guide, DATA))
    assert (
        f"site {site} depends on the other images"
        in pv.fit(model, guide, DATA, num_steps=1, progress=False, compile="off").note
    )


@pytest.mark.parametrize(
    "score", ["ais", "log_weights", "diagnose", "log_marginal of the prior", "compare's Defensive"]
)
def test_nothing_scores_them(score: str) -> None:
    model, guide = pair(of_x=lambda x: x.roll(1, 0))
    with pytest.raises(pv.UserError, match="depends on the other images"):
        if score == "ais":
            pv.ais(model, guide, DATA, num_steps=2, num_chains=1)
        elif score == "log_weights":
            pv.log_weights(model, guide, DATA)
        elif score == "diagnose":
            pv.diagnose(model, guide, DATA)
        else:
            proposal = "prior" if "prior" in score else "Defensive"
            log_marginal(model, guide, DATA, num_samples=10, proposal=proposal)


@pytest.mark.parametrize(
    "kind", ["plain", "BatchNorm", "Dropout", "row by row", "its own noise", "equal images"]
)
def test_rows_by_themselves_are_not_refused(kind: str) -> None:
    layers: dict[str, Change] = {
        "BatchNorm": nn.BatchNorm1d(4).train(),
        "Dropout": nn.Dropout().train(),
        "row by row": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
        "its own noise": lambda x: x + 0.1 * torch.randn_like(x),
    }
    model, guide = pair(of_guide=layers.get(kind, same))
    x = DATA[:1].repeat(6, 1) if kind == "equal images" else DATA
    checked = log_marginal(model, guide, x, num_samples=10).protocol["checked"]
    assert "log weights" in checked
    if kind == "its own noise":
        assert checked.endswith(
            "not the independence of the images, because the programs draw random numbers outside of sample sites"
        )
    else:
        assert checked.endswith("log weights, independence")


def test_an_image_scores_the_same_in_every_batch() -> None:
    """What the check promises: with its own noise, an image's figure is that of a set of its own."""
    model, guide = pair(of_x=lambda x: 0.3 * x.flip(-1))
    alone = log_marginal(model, guide, DATA[:1], num_samples=200)
    for others in (DATA[1:], DATA[1:].flip(0)):
        found = log_marginal(model, guide, torch.cat((DATA[:1], others)), num_samples=200)
        error = float((alone.se[0] ** 2 + found.se[0] ** 2).sqrt())
        assert float(found.log_px[0]) == pytest.approx(float(alone.log_px[0]), abs=5 * error)


@pytest.mark.parametrize("guide", ["PerDatum", "Planar", "IAF", "SemiAmortized"])
def test_guides_with_a_row_or_a_memory_are_not_refused(guide: str) -> None:
    shape = (1, 4, 4)
    x = (torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    torch.manual_seed(0)
    model = models.GenerativeModel(
        prior=models.StandardNormal(2), likelihood=models.Bernoulli(2, shape, hidden=(8,))
    )
    special = {
        "PerDatum": lambda: guides.PerDatum(shape, 2, num_data=20),
        "SemiAmortized": lambda: guides.SemiAmortized(shape, 2, model, hidden=(8,)),
    }
    q = special[guide]() if guide in special else getattr(guides, guide)(shape, 2, hidden=(8,))
    assert "independence" in log_marginal(model, q, x, num_samples=10).protocol["checked"]


def test_a_site_that_is_summed_out_is_looked_at_as_well() -> None:
    torch.manual_seed(0)
    means = torch.randn(3, 2)

    def model(x: Tensor, shift: float) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(means[c] + shift * x.mean(0), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pass

    x = torch.randn(10, 2)
    assert log_marginal(lambda x: model(x, 0.0), guide, x).exact
    with pytest.raises(pv.UserError, match="depends on the other images"):
        log_marginal(lambda x: model(x, 0.5), guide, x)
