"""Learned priors: densities by hand, the VampPrior's encoder, and the order in which a pair is
built.
"""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from pyro_vae import fit, guides, log_marginal, models
from pyro_vae.errors import UserError
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.options import Train
from pyro_vae.training.checkpoint import Checkpoint, restore, state_of

SHAPE = (1, 2, 3)
X = (torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def options(**chosen: Any) -> Train:
    """A small experiment."""
    return Train(
        **{"latent_dim": 3, "net": "MLP(hidden=(5,))", "prior": "VampPrior(components=4)", **chosen}
    )


def pair(**chosen: Any) -> tuple[Any, Any]:
    """Its model and guide."""
    return build_pair(options(**chosen), SHAPE, len(X))


def train(model: Any, guide: Any, **chosen: Any) -> None:
    """Three steps."""
    fit(model, guide, X, num_steps=3, batch_size=6, progress=False, compile="off", **chosen)


def test_the_mixture_is_the_sum_of_its_components() -> None:
    torch.manual_seed(0)
    prior, z = models.MixtureOfGaussians(2, components=3).double(), torch.randn(7, 2).double()
    with torch.no_grad():
        prior.logits.normal_()
        prior.log_scale.normal_()
    parts = [
        distributions.Normal(m, s.exp()).log_prob(z).sum(-1)
        for m, s in zip(prior.loc, prior.log_scale, strict=True)
    ]
    by_hand = torch.logsumexp(torch.stack(parts, -1) + prior.logits.log_softmax(-1), -1)
    torch.testing.assert_close(prior().log_prob(z), by_hand)


@pytest.mark.parametrize(
    "guide",
    ["MeanField", "FullRank", "LowRank", "IAF(width=8)", "NSF(width=8)", "MixtureOfGaussians"],
)
def test_the_vamp_prior_is_the_even_mixture_of_the_encoders_densities(guide: str) -> None:
    model, q = pair(guide=guide)
    model, q = model.double(), q.double()
    z = torch.randn(6, 3).double()
    with torch.no_grad():
        each = [q.build(q.local(u.unsqueeze(0))).log_prob(z) for u in model.prior.pseudo_inputs]
        torch.testing.assert_close(
            model.prior().log_prob(z), torch.logsumexp(torch.stack(each), 0) - log(4)
        )
    assert model.prior().sample((5,)).shape == (5, 3)


@pytest.mark.parametrize(
    ("guide", "depth"), [("IAF(depth=3, width=8)", 3), ("NSF(depth=2, width=8)", 2)]
)
def test_a_foreign_z_is_scored_by_so_many_passes(guide: str, depth: int) -> None:
    """Each layer of a step's network is called as often as every other: ``scoring_passes`` times in
    all steps together.
    """
    _, q = pair(guide=guide)
    law = q.build(q.local(X))
    layers = [module for module in q.flow.modules() if isinstance(module, torch.nn.Linear)]
    calls: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    law.log_prob(torch.zeros(len(X), 3))
    assert len(calls) * depth == q.scoring_passes * len(layers) > 0


def test_components_that_cost_too_many_inversions_are_warned_of() -> None:
    """As many as the warning names give none."""
    prior = "VampPrior(components={})"
    with pytest.warns(
        UserWarning, match="Take components=555 or fewer"
    ):  # 9 passes, one of 5000 too many
        pair(prior=prior.format(556), guide="IAF(depth=3, width=8)")
    pair(prior=prior.format(555), guide="IAF(depth=3, width=8)")
    pair(prior=prior.format(556), guide="Householder")


def test_the_encoder_is_the_guide_and_belongs_to_it() -> None:
    model, guide = pair()
    assert set(model.state_dict()) & set(guide.state_dict()) == set()
    assert [n for n, _ in model.prior.named_parameters()] == ["pseudo_logits"]
    z = torch.zeros(1, 3)
    before = model.prior().log_prob(z)
    with torch.no_grad():
        guide.net.last_bias().add_(1.0)
    assert not torch.equal(model.prior().log_prob(z), before)


@pytest.mark.parametrize("frozen", ["model", "guide"])
def test_freezing_one_leaves_the_other_free(frozen: str) -> None:
    model, guide = pair()
    train(model, guide)  # the prior has had its start from data
    before = {
        role: [p.clone() for p in part.parameters()]
        for role, part in (("model", model), ("guide", guide))
    }
    train(model, guide, freeze=frozen)
    for role, part in (("model", model), ("guide", guide)):
        moved = [
            not torch.equal(a, b) for a, b in zip(part.parameters(), before[role], strict=True)
        ]
        assert not any(moved) if role == frozen else all(moved)


def test_a_stored_pair_is_connected_again() -> None:
    model, guide = pair()
    train(model, guide)
    other, other_guide = pair(seed=1)
    restore(Checkpoint(state_of(model, guide)), other, other_guide, "file")
    z = torch.randn(5, 3)
    torch.testing.assert_close(other.prior().log_prob(z), model.prior().log_prob(z))
    assert not other.prior.waits_for_data


def test_pseudo_inputs_start_at_training_images_once() -> None:
    model, guide = pair()
    prior = model.prior
    assert prior.waits_for_data and bool(
        ((prior.pseudo_inputs > 0) & (prior.pseudo_inputs < 1)).all()
    )
    prior.start_from(X[:3])
    torch.testing.assert_close(prior.pseudo_inputs[:3], X[:3].clamp(0.01, 0.99))
    assert not prior.waits_for_data
    train(model, guide)
    kept = prior.pseudo_inputs.detach()
    train(model, guide, learning_rate=1e-9)
    torch.testing.assert_close(prior.pseudo_inputs, kept)


def test_pseudo_inputs_have_the_range_of_what_the_encoder_divides() -> None:
    guide = guides.MeanField(SHAPE, 3, hidden=(5,), input_scale=16.0)
    prior = models.VampPrior(3, SHAPE, guide, components=50)
    assert 8 < float(prior.pseudo_inputs.detach().max()) < 16
    prior.start_from(8.0 * torch.ones(2, *SHAPE))
    torch.testing.assert_close(prior.pseudo_inputs[:2], 8.0 * torch.ones(2, *SHAPE))


def test_a_prior_without_an_encoder_is_built_before_the_guide() -> None:
    """The seeds' numbers are those of model, then guide."""
    model, guide = pair(prior="StandardNormal")
    torch.manual_seed(0)
    expected = models.Bernoulli(3, SHAPE, hidden=(5,)), guides.MeanField(SHAPE, 3, hidden=(5,))
    found = model.likelihood, guide
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("guide", "word"),
    [
        ("SemiAmortized", "--guide SemiAmortized needs the model"),
        ("Planar", "guide Planar does not have it"),
        ("PointEstimate", "guide PointEstimate does not have it"),
        ("PerDatum", "guide PerDatum does not have it"),
    ],
)
def test_what_can_be_no_encoder_is_told(guide: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        pair(guide=guide)
    assert "\n" not in str(error.value)


def test_an_encoder_of_another_kind_is_told() -> None:
    with pytest.raises(UserError, match="local"):
        models.VampPrior(3, SHAPE, torch.nn.Linear(6, 6))
    with pytest.raises(UserError, match="components=0"):
        models.VampPrior(3, SHAPE, guides.MeanField(SHAPE, 3), components=0)
    with pytest.raises(UserError, match=r"components=2\.5"):
        models.MixtureOfGaussians(3, components=2.5)  # type: ignore[arg-type]


def test_a_prior_need_not_be_reparameterised() -> None:
    """Pathwise objectives ask it of the guide's draws alone; a mixture has no rsample."""
    model, guide = pair(prior="MixtureOfGaussians(components=3)")
    assert not model.prior().has_rsample
    train(model, guide, objective="TraceMeanField_ELBO")
    assert bool(log_marginal(model, guide, X, num_samples=5, compile="off").log_px.isfinite().all())


def test_a_mixture_of_one_standard_component_is_the_standard_normal() -> None:
    def estimate(prior: str) -> Tensor:
        model, guide = pair(prior=prior)
        if prior != "StandardNormal":
            with torch.no_grad():
                model.prior.loc.zero_()
            plain, _ = pair(prior="StandardNormal")
            model.likelihood.load_state_dict(plain.likelihood.state_dict())
            guide.load_state_dict(pair(prior="StandardNormal")[1].state_dict())
        return log_marginal(model, guide, X, num_samples=5, compile="off").log_px

    torch.testing.assert_close(
        estimate("MixtureOfGaussians(components=1)"), estimate("StandardNormal")
    )
