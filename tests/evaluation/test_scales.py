"""``poutine.scale`` in the programs: it trains, and scores on request without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.objectives import FreeBits, Trace_ELBO, TraceMeanField_ELBO
from tests.support.pairs import LATENT, Decoder, Encoder, binary_images

X = binary_images(20)
Made = tuple[Callable[..., Any], Callable[..., Any]]


def beta_vae(in_model: float, in_guide: float) -> Made:
    """A VAE whose latent is scaled in each of the two programs."""
    torch.manual_seed(0)
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=in_model):
                z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)), poutine.scale(scale=in_guide):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


def test_a_scale_in_the_model_alone_trains_as_stock_pyro() -> None:
    """By every objective whose KL is a sum of two terms; the closed form has one, and is left."""
    pair = beta_vae(0.3, 1.0)
    found = []
    for objective in (Trace_ELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(1)
        found.append(objective(*pair)(X).detach())
    torch.manual_seed(1)
    stock = pyro.infer.Trace_ELBO().loss(*pair, X)
    assert [float(each) for each in found] == pytest.approx([stock, stock], rel=1e-6)
    assert "KL of 'z': sampled, because poutine.scale of the model differs" in str(
        pv.check_pair(*pair, X)
    )
    assert pv.fit(*pair, X, num_steps=2, progress=False).train
    with pytest.raises(pv.UserError, match="use kl_weight"):
        FreeBits()(*pair)(X)


@pytest.mark.parametrize("scales", [(4.0, 4.0), (0.3, 1.0)])
def test_scales_are_ignored_on_request(scales: tuple[float, float]) -> None:
    """Every scorer's numbers are those of the programs without a scale, to the last digit."""
    plain, scaled = beta_vae(1.0, 1.0), beta_vae(*scales)
    quick: dict[str, Any] = {"num_samples": 200}
    for proposal in ("guide", "Defensive", "prior"):
        if proposal != "prior":  # whose weights are p(x | z) alone
            with pytest.raises(pv.UserError, match="ignore_scales=True"):
                pv.log_marginal(*scaled, X, proposal=proposal, **quick)
        a = pv.log_marginal(*plain, X, proposal=proposal, **quick)
        b = pv.log_marginal(*scaled, X, proposal=proposal, ignore_scales=True, **quick)
        assert torch.equal(a.log_px, b.log_px)
        assert b.protocol["scales"] == "ignored" and "scales ignored" in str(b)
        assert "scales" not in a.protocol
    steps = {"num_steps": 20, "num_chains": 2}
    a, b = pv.ais(*plain, X, **steps), pv.ais(*scaled, X, ignore_scales=True, **steps)
    assert torch.equal(a.log_px, b.log_px) and b.protocol["scales"] == "ignored"
    weights = []
    for pair, asked in ((plain, {}), (scaled, {"ignore_scales": True})):
        torch.manual_seed(2)
        weights.append(pv.log_weights(*pair, X, 3, **asked))
    assert torch.equal(*weights)


def test_a_scored_pair_trains_as_it_did() -> None:
    """What is known of a pair without its scales is not taken for what it is with them."""
    losses = []
    for first in (True, False):
        pair = beta_vae(0.3, 1.0)
        if first:
            pv.log_marginal(*pair, X, num_samples=20, ignore_scales=True)
        losses.append(pv.fit(*pair, X, num_steps=2, progress=False, seed=3).train[-1].loss)
    assert losses[0] == losses[1]


def test_compare_tells_of_it() -> None:
    scaled, plain = beta_vae(4.0, 4.0), beta_vae(1.0, 1.0)
    results = {
        "beta": pv.log_marginal(*scaled, X, num_samples=100, ignore_scales=True),
        "plain": pv.log_marginal(*plain, X, num_samples=100),
    }
    assert "beta: scored with ignore_scales=True" in str(pv.compare(results))
    assert "scales ignored" in str(pv.compare({name: results["beta"] for name in ("one", "two")}))


def test_what_is_scored_twice_is_another_quantity() -> None:
    """A classifier's term for the labels, under its scale, is a density of them once more."""
    y = (X.flatten(1).sum(1, keepdim=True) > 9).float()

    def model(x: Tensor, y: Tensor, more: bool) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.5).expand([1]).to_event(1), obs=y)
            pyro.sample("x", dist.Bernoulli(0.4).expand(x.shape[1:]).to_event(x.dim() - 1), obs=x)
            with poutine.scale(scale=46.0):
                if more:
                    pyro.sample("aux", dist.Bernoulli(0.5).expand([1]).to_event(1), obs=y)

    results = {
        name: pv.log_marginal(
            partial(model, more=more), lambda x: None, X, y=y, ignore_scales=True, num_samples=1
        )
        for name, more in (("once", False), ("twice", True))
    }
    with pytest.raises(pv.UserError, match=r"observes something twice .*another quantity"):
        pv.compare(results)
