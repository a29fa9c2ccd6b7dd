"""Annealed importance sampling where log p(x) is known: unbiased, a bound from either side, nearer
with more steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import LogMarginal, UserError, log_marginal, log_weights
from pyro_vae.evaluation import annealing, tiling
from pyro_vae.evaluation.ais import AnnealedMarginal, ais
from pyro_vae.evaluation.annealing import Kernel, Settings
from pyro_vae.evaluation.bdmc import BDMC, bdmc
from pyro_vae.evaluation.traced import TileTarget
from pyro_vae.evaluation.unconstrained import Point
from pyro_vae.training.select_step import CAPTURES
from tests.support import pairs
from tests.support.exact import Exact, gamma_poisson, ppca, two_levels
from tests.support.grids import thinned
from tests.support.spaces import SPACES
from tests.support.steps import replayed_on_cpu

EXACT: dict[str, Callable[[], Exact]] = {
    "ppca": ppca,
    "two sites": two_levels,
    "gamma": gamma_poisson,
}
INEXACT: dict[str, Callable[[int], Exact]] = {
    "wide": lambda n: ppca(n, widen=1.4, shift=0.3),
    "narrow": lambda n: ppca(n, widen=0.7),
    **SPACES,
}


def anneal(case: Exact, num_steps: int, **options: Any) -> AnnealedMarginal:
    """``ais`` on the case's own images, with few leapfrog steps."""
    options = {"num_leapfrog": 3, "num_chains": 4, "device": "cpu", **options}
    return ais(case.model, case.guide, options.pop("x", case.x), num_steps=num_steps, **options)


def both_ways(case: Exact, num_steps: int, size: int = 200, **options: Any) -> BDMC:
    """``bdmc`` on the case's model."""
    return bdmc(
        case.model,
        case.guide,
        size,
        num_steps=num_steps,
        num_leapfrog=3,
        num_chains=4,
        like=case.x,
        device="cpu",
        **options,
    )


def z_score(differences: Tensor) -> float:
    """The mean of independent differences in its own standard errors."""
    return float(differences.mean() / (differences.std() / len(differences) ** 0.5))


# ---- the target


def test_a_captured_target_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays write over the results of the last one: points that a chain is at are its own."""
    case = ppca(3, widen=1.4, shift=0.3)
    plain = anneal(case, 6)
    monkeypatch.setitem(CAPTURES, "cpu", replayed_on_cpu)
    captured = anneal(case, 6)
    assert torch.equal(captured.log_px, plain.log_px)
    assert torch.equal(captured.acceptance, plain.acceptance)


# ---- the exact guide


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_guide_has_no_variance(name: str) -> None:
    case = EXACT[name]()
    result = anneal(case, 20)
    torch.testing.assert_close(result.log_px, case.log_px, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.elbo_px, case.log_px, rtol=0, atol=1e-9)
    assert result.se_mc <= 1e-6 and abs(result.bias) <= 1e-12
    assert both_ways(case, 20, size=20).gap_px.abs().max() < 1e-9


# ---- imperfect ones


@pytest.mark.parametrize(("num_steps", "name"), thinned([1, 2, 20], INEXACT))
def test_the_mean_weight_is_px(name: str, num_steps: int) -> None:
    """E[ŵ / p(x)] = 1 for any number of steps."""
    case = INEXACT[name](400)
    result = anneal(case, num_steps)
    assert abs(z_score((result.log_px - case.log_px).exp() - 1.0)) < 4
    assert result.lower95 < case.mean


@pytest.mark.parametrize(
    "name",
    [
        "wide",
        "inner plate",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("two sites", "gamma")),
    ],
)
def test_the_truth_lies_between(name: str) -> None:
    """Forward ≤ exact ≤ reverse, each E[w⁻¹ …] = 1, on the very images that were simulated; and the
    gap falls with T.
    """
    case = INEXACT[name](40)
    exact = EXACT.get({"wide": "ppca"}.get(name, name), lambda: case)()
    few, many = both_ways(case, 3), both_ways(case, 60)
    for result in (few, many):
        if name == "inner plate":
            truth = dist.Normal(0.0, 1.36**0.5).log_prob(result.x).sum(-1)
        else:
            truth = log_weights(exact.model, exact.guide, result.x)[0]
        assert z_score(result.lower_px - truth) < 4 and z_score(result.upper_px - truth) > -4
        assert abs(z_score((result.lower_px - truth).exp() - 1.0)) < 4
        assert abs(z_score((truth - result.upper_px).exp() - 1.0)) < 4
        assert result.gap == pytest.approx(result.upper - result.lower)
    assert few.gap > 3 * few.se_gap
    assert z_score(few.gap_px - many.gap_px) > 3
    assert abs(many.gap) < few.gap / 2


def test_more_steps_come_nearer() -> None:
    case = ppca(200, widen=0.6)
    results = [anneal(case, steps) for steps in (1, 10, 100)]
    errors = [case.mean - r.mean for r in results]
    assert errors[0] > 1.5 * errors[1] > 4.5 * errors[2] > -4 * results[2].se_mc
    assert results[0].se_mc > results[1].se_mc > 1.5 * results[2].se_mc


def test_agrees_with_importance_sampling_on_a_network() -> None:
    model, guide = pairs.fresh("PyroModules")
    x = pairs.binary_images(60)
    annealed = ais(model, guide, x, num_steps=60, num_leapfrog=3, device="cpu")
    sampled = log_marginal(model, guide, x, num_samples=5000, device="cpu")
    error = (annealed.se_mc**2 + sampled.se_mc**2) ** 0.5
    assert abs(annealed.mean - annealed.bias - sampled.mean + sampled.bias) < 4 * error
    assert abs(annealed.elbo - sampled.elbo) < 1.0
    assert annealed.protocol["sha256"] == sampled.protocol["sha256"]


# ---- how it runs


@pytest.mark.parametrize("name", ["wide", pytest.param("simplex", marks=pytest.mark.slow)])
def test_staged_equals_eager(name: str) -> None:
    case = INEXACT[name](12)
    eager, staged = (anneal(case, 8, compile=tier) for tier in ("off", "graph"))
    torch.testing.assert_close(eager.log_px, staged.log_px, rtol=0, atol=1e-8)


def test_tiles_change_no_more_than_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ppca(50, widen=0.8)
    whole = anneal(case, 20)
    monkeypatch.setitem(tiling.ROWS, "cpu", 64)
    tiled = anneal(case, 20)  # 4 tiles of 13, the last one filled up
    assert not torch.equal(whole.log_px, tiled.log_px) and len(tiled.log_px) == 50
    assert abs(whole.mean - tiled.mean) < 4 * (whole.se_mc**2 + tiled.se_mc**2) ** 0.5
    assert tiled.protocol["sha256"] == whole.protocol["sha256"]
    per_image = (tiled.log_px - case.log_px) / (tiled.se + 1e-3)
    assert per_image.abs().max() < 8


def test_noise_of_different_tiles_is_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image many times, in tiles of 4: each has an estimate of its own."""
    case = ppca(1, widen=1.3)
    monkeypatch.setitem(tiling.ROWS, "cpu", 16)
    assert len(anneal(case, 2, x=case.x.expand(12, -1)).log_px.unique()) == 12


def test_one_seed_one_number_and_the_callers_state_is_left_alone() -> None:
    case = ppca(10, widen=0.8)
    state = torch.get_rng_state()
    first, again, other = (anneal(case, 5, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.log_px, again.log_px) and not torch.equal(first.log_px, other.log_px)
    both_ways(case, 3, size=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_step_sizes_are_an_images_own() -> None:
    """A posterior of a tenth of the guide's width needs a tenth of the step; the acceptance is the
    target's.
    """
    num_images = 60
    width = torch.where(torch.arange(num_images) % 2 == 0, 1.0, 0.1).double().unsqueeze(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(4), 10.0).to_event(1))
            pyro.sample("x", dist.Normal(z, x[:, 4:]).to_event(1), obs=x[:, :4])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :4], 1.0).to_event(1))

    x = torch.cat((torch.zeros(num_images, 4, dtype=torch.float64), width), dim=1)
    result = ais(model, guide, x, num_steps=100, device="cpu")
    assert float(result.acceptance.mean()) == pytest.approx(0.65, abs=0.08)
    wide, narrow = result.step_size[::2].mean(), result.step_size[1::2].mean()
    assert narrow < wide / 2


def test_fields_reach_both_programs() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y.unsqueeze(-1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y.unsqueeze(-1)) / 2, 0.5**0.5).to_event(1))

    y = torch.arange(20.0, dtype=torch.float64) % 3
    x = torch.randn(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = dist.Normal(y, 2.0**0.5).log_prob(x[:, 0])
    result = ais(model, guide, x, num_steps=5, device="cpu", y=y)
    torch.testing.assert_close(result.log_px, exact, rtol=0, atol=1e-9)
    assert bdmc(model, guide, 20, num_steps=5, like=x, device="cpu", y=y).gap_px.abs().max() < 1e-9


# ---- what is said


def test_the_headline_and_the_dictionary() -> None:
    result = anneal(ppca(20, widen=0.8), 10, protocol={"data": "pPCA"})
    assert isinstance(result, LogMarginal)
    first, second, third, *_ = str(result).splitlines()
    assert (
        first.startswith("log p(x) ≥ −")
        and "(AIS, T = 10, 4 chains, N = 20)" in first
        and "acceptance 0." in first
    )
    assert "lower bound in expectation" in second and "no such upper bound" in second
    assert "data pPCA" in third and "schedule sigmoid" in third
    figures = result.to_dict()
    for name in (
        "mean",
        "se_mc",
        "se_total",
        "bias",
        "lower95",
        "elbo",
        "num_samples",
        "acceptance",
    ):
        assert figures[name] == pytest.approx(
            float(torch.as_tensor(getattr(result, name)).double().mean())
        )
    assert result.num_samples == 4 and result.acceptance.shape == result.log_px.shape
    assert "one chain for each image" in str(anneal(ppca(20, widen=0.8), 10, num_chains=1))


def test_bdmc_says_that_its_images_are_simulated() -> None:
    result = both_ways(ppca(20, widen=0.8), 5, size=30)
    text = str(result)
    assert "30 simulated images" in text and "on real data there is no upper bound" in text
    assert result.to_dict()["gap"] == result.gap and result.x.shape == (30, 6)
    assert result.se_gap < result.se_lower


@pytest.mark.parametrize("num_steps", [2, 3, 20])
def test_the_acceptance_is_the_mean_over_the_moves(num_steps: int) -> None:
    """1 where every proposal is accepted, and where a share of them is, that share; NaN where
    nothing moves.
    """
    still = Point(torch.zeros(4, 2, 3), *torch.zeros(2, 4, 2), *torch.zeros(2, 4, 2, 3))
    for share in (1.0, 0.25):

        class Constant(Kernel):
            def move(self, target: Any, at: Point, beta: float) -> tuple[Point, Tensor]:
                return at, torch.full((2,), share)  # noqa: B023

        kernel = Constant(torch.ones(2), torch.ones(2, 3), 1)
        betas = Settings(num_steps, 4, 1, "linear", 0.65).betas()
        run = annealing.anneal(TileTarget(None, None), still, betas, kernel, lambda: None)  # type: ignore[arg-type]
        torch.testing.assert_close(run.acceptance, torch.full((2,), share))
        alone = annealing.anneal(TileTarget(None, None), still, [0.0, 1.0], kernel, lambda: None)  # type: ignore[arg-type]
        assert alone.acceptance.isnan().all()


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_schedules_rise_from_0_to_1(schedule: str) -> None:
    betas = torch.tensor(Settings(50, 1, 1, schedule, 0.65).betas(), dtype=torch.float64)
    assert betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()
    torch.testing.assert_close(betas + betas.flip(0), torch.ones_like(betas))


BAD: dict[str, dict[str, Any]] = {
    "num_steps=0": {"num_steps": 0},
    "num_chains=2.5": {"num_chains": 2.5},
    "num_leapfrog=0": {"num_leapfrog": 0},
    "did you mean 'sigmoid'": {"schedule": "sigmoidal"},
    "target_acceptance=1.5": {"target_acceptance": 1.5},
    "seed=-1": {"seed": -1},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_options_are_refused(words: str) -> None:
    case, options = ppca(4), BAD[words]
    with pytest.raises(UserError, match=words):
        ais(case.model, case.guide, case.x, **options)
    with pytest.raises(UserError, match=words):
        bdmc(case.model, case.guide, like=case.x, **options)


def test_bdmc_refuses_what_it_cant_simulate() -> None:
    case = ppca(4)
    with pytest.raises(UserError, match="give like=x"):
        bdmc(case.model, case.guide, 5, num_steps=2)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("pixels", dist.Normal(z, 1.0).to_event(1), obs=x[:, :3])

    with pytest.raises(UserError, match="observes a function of x"):
        bdmc(model, case.guide, 5, num_steps=2, like=case.x)


def test_a_model_that_takes_a_size_needs_no_images() -> None:
    from pyro_vae import guides, models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: dict[str, Any] = {"hidden": (8,)}
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(2, (1, 3, 4), **net)
        )
        guide = guides.MeanField((1, 3, 4), 2, **net)
        nn.init.normal_(next(model.likelihood.parameters()), std=2.0)
    result = bdmc(model, guide, 50, num_steps=30, num_leapfrog=3, device="cpu")
    assert result.x.shape == (50, 1, 3, 4)
    truth = log_marginal(model, guide, result.x, num_samples=5000, device="cpu")
    assert (
        z_score(result.lower_px - truth.log_px) < 4 and z_score(result.upper_px - truth.log_px) > -4
    )


@pytest.mark.slow
def test_ten_dimensions_from_a_poor_guide() -> None:
    """evaluation.md: d = 10 and a guide of half the width, where IW-5000 is 0.45 nats low; AIS is
    not.
    """
    zeros = torch.zeros(10, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5 * 0.5**0.5).to_event(1))

    x = 2**0.5 * torch.randn(
        50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    exact = dist.Normal(zeros, 2**0.5).to_event(1).log_prob(x)
    sampled = log_marginal(model, guide, x, num_samples=5000, device="cpu")
    annealed = ais(model, guide, x, num_steps=1000, device="cpu")
    assert sampled.mean < float(exact.mean()) - 0.2
    assert abs(annealed.mean - annealed.bias - float(exact.mean())) < 4 * annealed.se_mc < 0.08
