"""What ``check_pair`` says of a sound pair."""

from __future__ import annotations

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae import check_pair
from tests.support.pairs import Guide, Model, binary_images, fresh

X = binary_images()


def test_a_sound_pair_is_told_in_words() -> None:
    report = check_pair(Model(plate="images"), Guide(plate="rows"), X)
    text = str(report)
    for words in (
        "observed sites: x",
        "latent sites: z",
        "'images' in the model",
        "'rows' in the guide",
        "KL of 'z': analytic",
    ):
        assert words in text
    assert report.layout == "plate" and report.fields == ()


def test_it_says_why_a_kl_is_sampled_and_what_is_asked_for() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
            pyro.sample(
                "x",
                dist.Normal((z.sum(-1) + y).unsqueeze(-1).expand(*z.shape[:-1], 12), 1.0).to_event(
                    1
                ),
                obs=x,
            )

    def guide(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4)).to_event(1).mask(True))

    report = check_pair(model, guide, X, y=torch.zeros(len(X)))
    assert report.fields == ("index", "y")
    assert "not reparameterised: z" in str(report) and "KL of 'z'" in str(report)


def test_nothing_is_changed() -> None:
    model, guide = fresh("functions")
    pyro.clear_param_store()
    state = torch.get_rng_state()
    check_pair(model, guide, X)
    assert torch.equal(state, torch.get_rng_state()) and not list(pyro.get_param_store().keys())
