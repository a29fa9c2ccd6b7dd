"""The exact cases of evaluation.md through ``log_marginal`` itself; docs/evaluation.md indexes case
by case.

The cases that need no more than the streaming sums are in test_exact_laws.py, AIS is in
test_ais.py.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluation.proposals import Defensive
from pyro_vae.evaluation.weight_sums import WeightSums
from tests.support.exact import Exact, gamma_poisson, ppca
from tests.support.grids import thinned
from tests.support.spaces import SPACES
from tests.support.vaes import by_trapezoid, nonlinear, with_flow


def estimate(case: Exact, num_samples: int, **options: Any) -> pv.LogMarginal:
    """``log_marginal`` on the case's own images, CPU, no compiler."""
    options = {"device": "cpu", "compile": "graph", **options}
    return pv.log_marginal(case.model, case.guide, case.x, num_samples=num_samples, **options)


def ratio(result: pv.LogMarginal, case: Exact) -> Tensor:
    """Ŵ / p(x) of each image: its expectation is 1."""
    return (result.log_px - case.log_px).exp()


def z_score(values: Tensor, expected: float = 0.0) -> float:
    """The mean of independent values, in its own standard errors from what is expected."""
    return float((values.mean() - expected) / (values.std() / len(values) ** 0.5))


def whitened(num_images: int, dims: int, c: float, shift: float = 0.0) -> Exact:
    """z ~ N(0, I), x | z ~ N(z, I): the guide is N(shift, c²) where the posterior is N(0, 1), in
    each dimension.
    """
    zeros, sd = torch.zeros(dims, dtype=torch.float64), 0.5**0.5

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift * sd, c * sd).to_event(1))

    x = 2**0.5 * torch.randn(
        num_images, dims, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    return Exact(model, guide, x, dist.Normal(zeros, 2**0.5).to_event(1).log_prob(x))


def relative_variance(dims: int, c2: float, shift: float = 0.0) -> float:
    """Var(w)/Z² = ∏ c²/√(2c² − 1) · exp(μ²/(2c² − 1)) − 1."""
    return float((c2 / (2 * c2 - 1) ** 0.5 * exp(shift**2 / (2 * c2 - 1))) ** dims - 1)


# ---- 2. the best mean-field guide


def mean_field(case: Exact, widen: float) -> Exact:
    """The pPCA pair with the posterior's mean and ``widen`` times the best mean-field sd, 1/√P_ii."""
    rows = torch.cat(
        (torch.zeros_like(case.x[:1]), torch.eye(case.x.shape[1], dtype=torch.float64))
    )
    posterior = poutine.trace(case.guide).get_trace(rows).nodes["latent"]["fn"]
    start = posterior.loc[0]
    slope = posterior.loc[1:] - start
    sd = widen * posterior.precision_matrix[0].diagonal().rsqrt()

    def guide(x: Tensor) -> None:
        with pyro.plate("images", x.shape[0]):
            pyro.sample("latent", dist.Normal(start + x @ slope, sd).to_event(1))

    return Exact(case.model, guide, case.x, case.log_px)


@pytest.mark.parametrize("widen", [0.8, 1.0, 1.25])
def test_the_elbo_of_mean_field_guides_is_off_by_the_closed_form(widen: float) -> None:
    """Best: ½(Σ log P_ii − log|P|); with every sd s times the best one, d(½(s² − 1) − log s) more."""
    case = ppca(300)
    ours = mean_field(case, widen)
    torch.manual_seed(0)
    draws = pv.log_weights(ours.model, ours.guide, ours.x, num_particles=500)
    gap = case.mean_field_gap + 3 * (0.5 * (widen**2 - 1) - log(widen))
    error = float(draws.var(0).sum() / 500) ** 0.5 / len(case.x)
    elbo = estimate(ours, 500).elbo
    assert abs(case.mean - elbo - gap) < 4 * error < 0.2 * case.mean_field_gap


# ---- 3. the bias law


@pytest.mark.parametrize(
    ("c2", "shift", "num_samples"),
    [(0.85, 0.3, 30), pytest.param(1.5, 0.8, 30, marks=pytest.mark.slow)],
)
def test_the_bias_is_half_the_relative_variance_over_the_draws(
    c2: float, shift: float, num_samples: int
) -> None:
    """K · bias → −½ Var(w)/Z², for c² > ¾; and the bias that is reported is that bias."""
    case = whitened(30_000, 2, c2**0.5, shift)
    result, variance = estimate(case, num_samples), relative_variance(2, c2, shift)
    off = result.log_px - case.log_px
    allowed = 4 * float(off.std()) / len(off) ** 0.5 + 3 * variance / num_samples**2
    expected = -variance / (2 * num_samples)
    assert float(off.mean()) == pytest.approx(expected, abs=allowed)
    assert allowed < -0.7 * expected
    assert result.bias == pytest.approx(expected, rel=0.2)
    assert float(ratio(result, case).var()) * num_samples == pytest.approx(variance, rel=0.2)


# ---- 4. the Pareto tail


@pytest.mark.parametrize("c", [0.7, 0.8, 0.9])
def test_khat_in_two_dimensions_is_one_minus_c_squared(c: float) -> None:
    result = estimate(whitened(100, 2, c), 5000)
    assert float(result.khat.mean()) == pytest.approx(1 - c**2, abs=0.05)


# ---- 5. a nonlinear decoder


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("proposal", ["guide", "Defensive"])
def test_a_nonlinear_bernoulli_decoder_by_the_trapezoid_rule(
    latent_dim: int, proposal: str
) -> None:
    """All 64 images, 4 times over: the mean, each image and the unbiased weights agree with the sum
    over the grid.
    """
    case = nonlinear(latent_dim, times=4)
    result = estimate(case, 500, proposal=proposal)
    assert abs(result.mean - result.bias - case.mean) < 4 * result.se_mc
    per_image = (result.log_px - case.log_px + result.se.square() / 2) / result.se
    assert float(per_image.abs().max()) < 5 and 0.8 < float(per_image.std()) < 1.25
    assert abs(z_score(ratio(result, case), 1.0)) < 4


def test_the_grid_stands_still() -> None:
    """201 nodes are those of 401, and all images together have probability 1."""
    for latent_dim in (1, 2):
        log_px = by_trapezoid(latent_dim, 6)[0]
        assert float(log_px.logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
        if latent_dim == 1:
            torch.testing.assert_close(log_px, by_trapezoid(1, 6, 401)[0], rtol=0, atol=1e-9)


# ---- 6. discrete latents

SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
PLACES = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)


def mixture(temper: float, num_images: int = 200) -> Exact:
    """A Gaussian mixture with its component as a latent; the guide is its exact posterior to the
    power ``temper``.
    """

    def log_joint(x: Tensor) -> Tensor:
        return dist.Normal(PLACES, 0.6).log_prob(x) + SHARES.log()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(SHARES))
            pyro.sample("x", dist.Normal(PLACES[c].unsqueeze(-1), 0.6).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=temper * log_joint(x)))

    x = 1.5 * torch.randn(
        num_images, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    return Exact(model, guide, x, log_joint(x).logsumexp(-1))


def nothing(x: Tensor) -> None:
    """A guide without a site."""


def test_enumeration_is_pyros() -> None:
    """Σ_i logsumexp_c log p(x_i, c) = −TraceEnum_ELBO of the enumerated model; the exact discrete
    guide gives it back.
    """
    case = mixture(1.0)
    enumerated = infer.config_enumerate(case.model, "parallel")
    total = -infer.TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated, nothing, case.x)
    assert total == pytest.approx(float(case.log_px.sum()), rel=1e-12)
    result = estimate(case, 20)
    torch.testing.assert_close(result.log_px, case.log_px, rtol=0, atol=1e-9)


def test_a_wrong_discrete_guide_is_unbiased() -> None:
    case = mixture(0.5)
    result = estimate(case, 100)
    assert abs(z_score(ratio(result, case), 1.0)) < 4
    assert abs(result.mean - result.bias - case.mean) < 4 * result.se_mc


def test_a_discrete_site_that_the_guide_lacks_is_summed_out() -> None:
    """Never drawn from the prior in silence; and where no latent is left, there is nothing for HMC
    or a wider guide to move.
    """
    case = mixture(1.0)
    alone = Exact(case.model, nothing, case.x, case.log_px)
    result = estimate(alone, 10)
    torch.testing.assert_close(result.log_px, case.log_px, rtol=0, atol=1e-12)
    assert result.se_mc == 0.0
    with pytest.raises(pv.UserError, match="no latent site, so its log weights"):
        estimate(alone, 10, proposal="Defensive")


# ---- 8. sums to one


@pytest.mark.parametrize("proposal", ["guide", "Defensive"])
def test_all_images_together_have_probability_one(proposal: str) -> None:
    """Σ_x exp L̂(x) = 1 within 4 SE, 256 images of 8 pixels under a flow guide; and each is the
    trapezoid's.
    """
    # Pyro's inverse of the flow, which the mixture needs, works in float32 alone
    case = with_flow(torch.float64 if proposal == "guide" else torch.float32)
    result = estimate(case, 2000, proposal=proposal)
    share = result.log_px.exp()
    error = float((share * result.se).square().sum()) ** 0.5
    assert abs(float(share.sum()) - 1.0) < 4 * error < 0.05
    assert abs(result.mean - result.bias - case.mean) < 4 * result.se_mc


# ---- bounds rise


def test_bounds_rise_from_one_draw_to_the_truth() -> None:
    """L_1 ≤ L_10 ≤ L_100 ≤ exact, a network's decoder and a guide that is too wide, 20 repetitions
    of 64 images.
    """
    case = nonlinear(2, widen=1.6, times=20)
    bounds = []
    for k in (1, 10, 100):
        off = (estimate(case, k, seed=k).log_px - case.log_px).reshape(20, -1)
        bounds.append((float(off.mean()), float(off.var(0).sum() / 20) ** 0.5 / off.shape[1]))
    for (lower, first), (upper, second) in zip(bounds, [*bounds[1:], (0.0, 0.0)], strict=True):
        assert lower <= upper + 4 * (first**2 + second**2) ** 0.5
    assert bounds[0][0] < -0.1


# ---- the defensive proposal


def narrow(num_images: int) -> Exact:
    """Ten latents, a guide with half the posterior's sd."""
    return ppca(num_images, num_pixels=12, latent_dim=10, widen=0.5)


def test_a_defensive_mixture_is_right_where_a_narrow_guide_is_not() -> None:
    """evaluation.md: plain q is 0.4 to 0.7 nats low at K = 1000; the mixture is unbiased, and its
    errors are honest.
    """
    case = narrow(300)
    plain, result = estimate(case, 1000), estimate(case, 1000, proposal="Defensive")
    assert -1.0 < plain.mean - case.mean < -0.3
    assert abs(z_score(ratio(result, case), 1.0)) < 4
    assert abs(result.mean - result.bias - case.mean) < 4 * result.se_mc < 0.02
    # every image has the same law of weights: 300 images are 300 repetitions
    claimed = (result.se * ratio(result, case)).square().mean()
    assert float(ratio(result, case).var() / claimed) == pytest.approx(1.0, abs=0.35)
    unstratified = (1 / result.ess - 1 / 1000) * 1000 / 999
    assert float(result.se.square().mean()) < float(unstratified.mean())


@pytest.mark.parametrize(("name", "scale"), thinned(SPACES, [1.5, 3.0]))
def test_a_defensive_mixture_is_unbiased_in_any_space(name: str, scale: float) -> None:
    case = SPACES[name](400)
    result = estimate(case, 60, proposal=Defensive(scale, 0.3))
    assert abs(z_score(ratio(result, case), 1.0)) < 4


def test_a_defensive_mixture_costs_little_where_the_guide_is_good() -> None:
    case = ppca(200, widen=0.9)
    assert estimate(case, 500, proposal="Defensive").se_mc < 1.5 * estimate(case, 500).se_mc


# ---- the prior


@pytest.mark.parametrize(
    "make", [gamma_poisson, lambda n: mixture(1.0, n)], ids=["gamma-poisson", "mixture"]
)
def test_naive_monte_carlo_is_unbiased_and_warns(make: Callable[[int], Exact]) -> None:
    case = make(400)
    result = estimate(case, 500, proposal="prior")
    assert abs(z_score(ratio(result, case), 1.0)) < 4
    assert abs(result.mean - result.bias - case.mean) < 4 * result.se_mc
    assert any("drawn from the prior" in text for text in result.warnings)


@pytest.mark.slow
def test_naive_monte_carlo_is_low_in_ten_dimensions() -> None:
    """evaluation.md: 50 000 draws of the prior were 2.1 nats low at d = 10; the guide with one draw
    is not.
    """
    case = ppca(60, num_pixels=12, latent_dim=10)
    assert estimate(case, 50_000, proposal="prior").mean < case.mean - 0.5
    assert estimate(case, 1).mean == pytest.approx(case.mean, abs=1e-9)


# ---- the jackknife


@pytest.mark.parametrize("spread", [0.3, 1.5, 6.0])
@pytest.mark.parametrize("num_samples", [5, 50, 500])
def test_the_jackknife_is_its_formula(num_samples: int, spread: float) -> None:
    """K·L_K − (K−1)·mean_j L_{K−1} without draw j, each of them summed anew, from whatever chunks."""
    lw = spread * torch.randn(
        num_samples, 7, generator=torch.Generator().manual_seed(num_samples), dtype=torch.float64
    )
    k = num_samples
    rows = torch.arange(k)
    without = torch.stack([lw[rows != j].logsumexp(0) - log(k - 1) for j in range(k)])
    expected = k * (lw.logsumexp(0) - log(k)) - (k - 1) * without.mean(0)
    for chunk in (3, 64, k):
        sums = WeightSums(7, k, torch.device("cpu"))
        for part in lw.split(chunk):
            sums.add(part)
        torch.testing.assert_close(sums.finish()["debiased_px"], expected, rtol=0, atol=1e-9)


def test_the_jackknifes_bias_is_of_second_order() -> None:
    """The bias of L_K halves as K doubles, that of the jackknife falls to about a quarter."""
    c, errors = 1.7, {"plain": [], "jackknife": []}  # type: ignore[var-annotated]
    random = torch.Generator().manual_seed(8)
    for k in (8, 16):
        z = c * torch.randn(k, 150_000, 2, generator=random, dtype=torch.float64)
        sums = WeightSums(150_000, k, torch.device("cpu"))
        sums.add(
            (-0.5 * z.square() + 0.5 * (z / c).square() + log(c)).sum(-1)
        )  # N(0, c²) for N(0, 1): log p(x) = 0
        figures = sums.finish()
        errors["plain"].append(float(figures["log_px"].mean()))
        errors["jackknife"].append(float(figures["debiased_px"].mean()))
    assert errors["plain"][0] / errors["plain"][1] == pytest.approx(2.0, abs=0.35)
    assert errors["jackknife"][0] / errors["jackknife"][1] > 2.8
    assert all(
        abs(b) < 0.35 * abs(a) for a, b in zip(errors["plain"], errors["jackknife"], strict=True)
    )


# ---- coverage (300 repetitions of each image: benchmarks/coverage.py)


@pytest.mark.slow
@pytest.mark.parametrize(("latent_dim", "widen"), [(3, 0.85), (5, 0.9), (5, 1.5)])
def test_intervals_cover_where_the_diagnostics_vouch_for_them(
    latent_dim: int, widen: float
) -> None:
    """L − bias ± 1.96 se, where k̂ < 0.5 and ESS ≥ 300: 20 images, 60 repetitions, 1200 intervals."""
    case = ppca(20, num_pixels=latent_dim + 3, latent_dim=latent_dim, widen=widen)
    many = Exact(case.model, case.guide, case.x.repeat(60, 1), case.log_px.repeat(60))
    result = estimate(many, 1000)
    sound = (result.khat < 0.5) & (result.ess >= 300)
    inside = (result.log_px + result.se.square() / 2 - many.log_px).abs() <= 1.96 * result.se
    assert float(sound.double().mean()) > 0.5
    assert 0.91 < float(inside[sound].double().mean()) < 0.99
