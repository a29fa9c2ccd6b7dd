"""η by other ways than a network: a table with a row an image, a few gradient steps, and refinement
from either.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

from pyro_vae import (
    check_pair,
    fit,
    guides,
    log_densities,
    log_marginal,
    log_weights,
    models,
    refine,
)
from pyro_vae.errors import UserError
from pyro_vae.nn.sparse_rows import mark_rows
from pyro_vae.training.optimizers import make_optimizer

SHAPE, SIGMA = (4,), 0.6


def linear_model(correlated: bool) -> models.GenerativeModel:
    """x = W z + b + σ ε in float64, z of two dimensions; with orthogonal columns in W the posterior
    is factorised.
    """
    likelihood = models.Gaussian(2, SHAPE, scale=SIGMA, hidden=()).double()
    weight = torch.tensor([[1.0, 0.9], [0.8, -0.3], [0.6, 1.0], [-0.2, 0.7]]).double()
    if not correlated:
        weight = torch.linalg.qr(weight).Q * torch.tensor([1.3, 0.7]).double()
    with torch.no_grad():
        likelihood.net.layers[0].weight.copy_(weight)
        likelihood.net.layers[0].bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]).double())
        likelihood.log_scale.fill_(torch.tensor(SIGMA).double().log())
    return models.GenerativeModel(models.StandardNormal(2).double(), likelihood)


def exact(model: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x) of each image, the posteriors' means, and their precision."""
    layer = model.likelihood.net.layers[0]
    weight, bias = layer.weight.detach(), layer.bias.detach()
    eye = torch.eye(2).double()
    log_px = distributions.MultivariateNormal(
        bias, weight @ weight.T + SIGMA**2 * torch.eye(4).double()
    ).log_prob(x)
    precision = weight.T @ weight / SIGMA**2 + eye
    return log_px, (x - bias) @ torch.linalg.solve(precision, weight.T / SIGMA**2).T, precision


def images(number: int, seed: int = 0) -> Tensor:
    """Any; the exact cases hold for all."""
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def per_datum(number: int) -> guides.PerDatum:
    """In float64."""
    return guides.PerDatum(SHAPE, 2, number).double()


QUIET: dict[str, Any] = {"progress": False, "compile": "off"}


# ---- the table


def test_per_datum_reaches_the_exact_posterior() -> None:
    model, guide, x = linear_model(correlated=False), per_datum(6), images(6)
    settings: dict[str, Any] = {
        "num_steps": 500,
        "batch_size": 6,
        "learning_rate": 0.05,
        "freeze": "model",
    }
    fit(
        model,
        guide,
        x,
        objective="TraceMeanField_ELBO(num_particles=32)",
        progress=False,
        compile="graph",
        **settings,
    )
    log_px, mean, precision = exact(model, x)
    loc, log_scale = guide.table.detach().chunk(2, -1)
    torch.testing.assert_close(loc, mean, atol=0.02, rtol=0)
    torch.testing.assert_close(
        (-2 * log_scale).exp(), precision.diagonal().expand(6, -1), atol=0, rtol=0.05
    )
    weights = log_weights(model, guide, x, num_particles=200)
    torch.testing.assert_close(weights.mean(0), log_px, atol=0.01, rtol=0)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD(momentum=0.9)", "AdamW(weight_decay=0.1)"])
def test_rows_that_a_batch_lacks_do_not_move(optimizer: str) -> None:
    table = nn.Parameter(torch.randn(5, 2))
    mark_rows(table)
    step = make_optimizer(optimizer, [table], 0.1)
    for rows in ([0, 1], [2, 3], [1, 4]):
        before = table.detach().clone()
        table.grad = torch.zeros_like(table)
        table.grad[rows] = 1.0
        step.step()
        moved = (table.detach() != before).any(1)
        assert moved.nonzero().flatten().tolist() == rows


def test_held_adam_is_torchs_sparse_adam() -> None:
    start = torch.randn(6, 3, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mark_rows(ours)
    steps = make_optimizer("Adam", [ours], 0.1), torch.optim.SparseAdam([theirs], lr=0.1)
    for _ in range(8):
        rows = torch.randperm(6)[:2]
        ours.grad = torch.zeros_like(start)
        ours.grad[rows] = torch.randn(2, 3, dtype=torch.float64)
        theirs.grad = ours.grad.to_sparse(1)
        for step in steps:
            step.step()
    torch.testing.assert_close(
        ours, theirs, atol=1e-5, rtol=0
    )  # the two add eps before and after the bias correction


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_training_step_moves_the_rows_of_its_batch_alone(compile: str) -> None:
    """In one pass each row has one visit: after k steps, 2k rows are where the whole pass will
    leave them.
    """

    def table(num_steps: int) -> Tensor:
        model, guide = linear_model(correlated=True), per_datum(8)
        fit(
            model,
            guide,
            images(8),
            num_steps=num_steps,
            batch_size=2,
            freeze="model",
            schedule="constant",
            progress=False,
            compile=compile,
        )
        return guide.table.detach()

    whole = table(4)
    assert bool((whole != 0).any(1).all())
    for k in (1, 2, 3):
        part = table(k)
        moved = (part != 0).any(1)
        assert int(moved.sum()) == 2 * k and torch.equal(part[moved], whole[moved])


def test_a_staged_table_is_the_eager_one() -> None:
    found = []
    for compile in ("off", "graph"):
        model, guide = linear_model(correlated=True), per_datum(8)
        history = fit(
            model, guide, images(8), num_steps=6, batch_size=3, progress=False, compile=compile
        )
        assert history.compile == compile
        found.append((guide.table.detach(), guide.seen))
    for eager, staged in zip(*found, strict=True):
        torch.testing.assert_close(staged, eager)


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_unseen_images_are_refused_and_refined(compile: str) -> None:
    model, guide, x, other = (
        linear_model(correlated=False),
        per_datum(6),
        images(6),
        images(6, seed=1),
    )
    fit(model, guide, x, num_steps=20, batch_size=6, **QUIET)
    assert log_marginal(model, guide, x, num_samples=5, compile=compile).num_images == 6
    for wrong in (other, x.flip(0), torch.cat((x, other)), torch.cat((x[:5], other[:1]))):
        with pytest.raises(UserError, match=r"refine\(model, guide, x\)"):
            log_marginal(model, guide, wrong, num_samples=5, compile=compile)
    found = refine(model, guide, other, num_steps=200, num_samples=100, compile=compile)
    assert found.approximation_gap == pytest.approx(0.0, abs=0.02)
    assert found.elbo_refined > found.elbo_amortized


def test_a_row_that_no_step_has_seen_has_no_image() -> None:
    """Once any row is fitted; and a dry run, in training mode too, fits none."""
    model, guide, x = linear_model(correlated=False), per_datum(6), images(6)
    check_pair(model, guide, images(6, seed=1))
    assert log_weights(model, guide, x).shape == (1, 6)
    fit(model, guide, x, num_steps=1, batch_size=3, **QUIET)
    with pytest.raises(UserError, match="not the one it was fitted on"):
        log_weights(model, guide, x)


def test_a_validation_set_is_refused_beforehand() -> None:
    with pytest.raises(UserError, match="refine") as error:
        fit(
            linear_model(correlated=True),
            per_datum(6),
            images(6),
            x_valid=images(3),
            num_steps=1,
            **QUIET,
        )
    assert "\n" not in str(error.value)


def test_training_goes_on_when_the_images_are_drawn_afresh() -> None:
    """Dynamic binarization shows another image in each row, at every visit and in a second
    training's dry run.
    """
    torch.manual_seed(0)
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, SHAPE, hidden=(3,))
    )
    guide, x = guides.PerDatum(SHAPE, 2, 6), torch.rand(6, *SHAPE)
    for seed in (0, 1):
        fit(model, guide, x, binarize="dynamic", num_steps=3, batch_size=3, seed=seed, **QUIET)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: guides.PerDatum(SHAPE, 2, 0), "num_data=0"),
        (lambda: per_datum(3)(images(3)), "index"),
        (lambda: per_datum(3)(images(3), index=torch.arange(3) + 1), "row 3"),
        (
            lambda: fit(
                linear_model(True), per_datum(4), images(6), num_steps=1, batch_size=6, **QUIET
            ),
            "row 4",
        ),
        (lambda: guides.SemiAmortized(SHAPE, 2, linear_model(True), steps=0), "steps=0"),
        (lambda: guides.SemiAmortized(SHAPE, 2, linear_model(True), steps=(5,)), r"steps=\(5,\)"),
        (lambda: guides.SemiAmortized(SHAPE, 2, linear_model(True), step_size=0.0), "step_size"),
        (lambda: guides.SemiAmortized(SHAPE, 2, linear_model(True), num_particles=3), "even"),
    ],
)
def test_refusals_are_a_line(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


# ---- a few gradient steps


def semi_amortized(model: Any, **args: Any) -> guides.SemiAmortized:
    """An untrained small one, in float64."""
    torch.manual_seed(0)
    return guides.SemiAmortized(SHAPE, 2, model, hidden=(5,), **args).double()


def test_many_steps_reach_the_exact_posterior() -> None:
    """The noises' first two moments are exact, and so is the ELBO's estimate for a factorised
    Gaussian posterior.
    """
    model, x = linear_model(correlated=False), images(5)
    guide = semi_amortized(model, steps=200)
    _, mean, precision = exact(model, x)
    loc, log_scale = guide.local(x).detach().chunk(2, -1)
    torch.testing.assert_close(loc, mean, atol=0.05, rtol=0)
    torch.testing.assert_close(
        (-2 * log_scale).exp(), precision.diagonal().expand(5, -1), atol=0, rtol=0.1
    )


def test_the_steps_raise_the_bound_of_the_same_network() -> None:
    model, x = linear_model(correlated=True), images(8)
    guide = semi_amortized(model)
    plain = guides.MeanField(SHAPE, 2, hidden=(5,)).double()
    plain.net.load_state_dict(guide.net.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        better = log_weights(model, guide, x, num_particles=200).mean(0)
        bound = log_weights(model, plain, x, num_particles=200).mean(0)
    log_px, _, precision = exact(model, x)
    best = log_px - 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert bool((better > bound + 0.5).all()) and bool((better < best + 0.1).all())


def test_eta_is_deterministic_and_row_by_row() -> None:
    guide, x = semi_amortized(linear_model(correlated=True)), images(6)
    assert torch.equal(guide.local(x), guide.local(x))
    torch.testing.assert_close(guide.local(x), torch.cat([guide.local(row) for row in x.split(1)]))


def test_the_model_is_not_a_part_of_the_guide() -> None:
    model = linear_model(correlated=True)
    guide = semi_amortized(model)
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in model.parameters()}
    assert set(guide.state_dict()) == {"noise", *(f"net.{name}" for name in guide.net.state_dict())}


def test_the_network_learns_as_if_the_steps_were_constant() -> None:
    """First order: ∂η/∂φ is that of the network's guess."""
    guide, x = semi_amortized(linear_model(correlated=True)), images(3)
    bias, weight = guide.net.last_bias(), torch.randn(3, 4).double()
    found = torch.autograd.grad((weight * guide.local(x)).sum(), guide.net.parameters())
    expected = torch.autograd.grad((weight * guide.net(x)).sum(), guide.net.parameters())
    assert bias.shape == (4,)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("frozen", [None, "guide", "model"])
def test_freezing_and_staging_of_the_climbing_guide(frozen: str | None) -> None:
    found = []
    for compile in ("off", "graph"):
        model = linear_model(correlated=True)
        guide = semi_amortized(model, steps=2)
        parts = {"model": model, "guide": guide}
        before = {
            role: [p.detach().clone() for p in part.parameters()] for role, part in parts.items()
        }
        history = fit(
            model,
            guide,
            images(8),
            num_steps=3,
            batch_size=4,
            progress=False,
            compile=compile,
            freeze=frozen,
        )
        assert history.compile == compile
        for role, part in parts.items():
            moved = [
                not torch.equal(a, b) for a, b in zip(part.parameters(), before[role], strict=True)
            ]
            assert not any(moved) if role == frozen else all(moved)
        found.append([p.detach() for part in parts.values() for p in part.parameters()])
    for eager, staged in zip(*found, strict=True):
        torch.testing.assert_close(staged, eager)


# ---- refinement of correlated posteriors


@pytest.mark.slow
def test_full_rank_closes_the_gap_that_a_mean_field_cannot() -> None:
    model, x = linear_model(correlated=True), images(5)
    log_px, _, precision = exact(model, x)
    gap = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())
    assert gap > 0.1
    expected = {
        guides.MeanField: gap,
        guides.FullRank: 0.0,
        guides.LowRank: 0.0,
        guides.Householder: 0.0,
    }
    for part, least in expected.items():
        torch.manual_seed(0)
        guide = part(SHAPE, 2, hidden=(4,)).double()
        found = refine(model, guide, x, num_steps=200, num_samples=200, compile="graph")
        assert float((log_px - found.elbo_refined_px).mean()) == pytest.approx(least, abs=0.05), (
            part
        )


def test_the_terms_of_a_table_are_those_of_its_rows() -> None:
    model, guide, x = linear_model(correlated=True), per_datum(6), images(6)
    with torch.no_grad():
        guide.table.normal_(generator=torch.Generator().manual_seed(0))
    site = log_densities(
        model, guide, x[2:5], num_particles=4, index=torch.tensor([2, 3, 4])
    ).guide["z"]
    loc, log_scale = guide.table[2:5].chunk(2, -1)
    by_hand = distributions.Normal(loc, log_scale.exp()).log_prob(site.value).sum(-1)
    torch.testing.assert_close(site.log_prob, by_hand)
