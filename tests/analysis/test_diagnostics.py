"""Diagnostics against closed forms: a factor model whose posterior factorises, pPCA, two levels, a
mixture.
"""

from __future__ import annotations

import json
from math import log
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import AffineTransform

from pyro_vae import log_marginal
from pyro_vae.analysis.diagnose import diagnose, mutual_information, sbc_ranks
from pyro_vae.analysis.mutual_information import cross_density
from pyro_vae.analysis.representation import Diagnostics
from pyro_vae.errors import UserError
from pyro_vae.pair.layouts import run
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.terms import SiteTerms
from tests.support.exact import Exact, gamma_poisson, ppca, two_levels
from tests.support.pairs import FORMS, binary_images, fresh

SIGMA = 0.7
LOADINGS = (1.5, 0.8, 0.0, 0.0, 0.3)


def factors(
    guide_as: str = "normal", num_images: int = 1000, loadings: tuple[float, ...] = LOADINGS
) -> Exact:
    """x_d = w_d z_d + σ ε: z_d | x ~ N(w x / (w² + σ²), σ² / (w² + σ²)), and z_d is of no use where
    w_d = 0.
    """
    w = torch.tensor(loadings, dtype=torch.float64)
    total = w.square() + SIGMA**2
    scale = SIGMA / total.sqrt()
    zeros = torch.zeros_like(w)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w * z, SIGMA).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = w * x / total
        with pyro.plate("data", len(x)):
            if guide_as == "normal":
                fn: Any = dist.Normal(loc, scale).to_event(1)
            elif guide_as == "full":
                fn = dist.MultivariateNormal(loc, scale_tril=scale.diag())
            else:  # a flow, as PyTorch knows it: no mean, no closed KL, dimensions that can't be told apart
                base = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
                fn = dist.TransformedDistribution(base, [AffineTransform(loc, scale, event_dim=1)])
            pyro.sample("z", fn)

    x = (
        torch.randn(
            num_images, len(w), generator=torch.Generator().manual_seed(4), dtype=torch.float64
        )
        * total.sqrt()
    )
    return Exact(model, guide, x, dist.Normal(zeros, total.sqrt()).log_prob(x).sum(-1))


def informations() -> Tensor:
    """I(x_d; z_d) = ½ log(1 + w²/σ²), which is the mean KL of the exact posterior too."""
    return 0.5 * (1 + torch.tensor(LOADINGS, dtype=torch.float64).square() / SIGMA**2).log()


def examine(case: Exact, **options: Any) -> Diagnostics:
    return diagnose(
        case.model, case.guide, case.x, **{"device": "cpu", "information_images": 400, **options}
    )


# ------------------------------------------------------------------------------------------
# active units, KL by dimension, rate and distortion


@pytest.mark.parametrize("guide_as", ["normal", "full", "flow"])
def test_a_unit_is_active_where_it_is_used(guide_as: str) -> None:
    """Variances are w²/(w² + σ²); of averaged draws the noise, which would make idle units active,
    is taken out.
    """
    units = examine(factors(guide_as)).units
    w2 = torch.tensor(LOADINGS, dtype=torch.float64).square()
    expected = w2 / (w2 + SIGMA**2)
    assert (units.count, units.num_units) == (3, 5)
    found = units.variances["z"]
    tolerance = 5 * (2 / 1000) ** 0.5 * (expected + 1 / 20)  # 20 draws of variance ≤ 1
    assert bool(((found - expected).abs() < tolerance).all())
    if guide_as != "flow":
        assert float(found[2]) == float(found[3]) == 0.0


def test_kl_by_dimension_is_the_closed_form_and_adds_up_to_the_rate() -> None:
    case = factors()
    found = examine(case)
    by_dimension = found.kl.values["z"]
    # KL of N(m, s²) is ½(s² + m² − 1) − log s, and m² has variance 2 Var(m)²
    spread = (
        torch.tensor(LOADINGS).double().square()
        / (torch.tensor(LOADINGS).double().square() + SIGMA**2)
    ) / 2**0.5
    assert bool(((by_dimension - informations()).abs() <= 5 * spread / 1000**0.5 + 1e-12).all())
    assert found.kl.how == {"z": "analytic"}
    assert found.kl.total == pytest.approx(found.rate_distortion.rate, abs=1e-9)


@pytest.mark.parametrize("guide_as", ["full", "flow"])
def test_a_site_that_does_not_factorise_has_one_kl_and_it_is_said(guide_as: str) -> None:
    exact, found = examine(factors()), examine(factors(guide_as))
    assert found.kl.values["z"].shape == (1,) and "do not factorise" in found.kl.how["z"]
    assert found.kl.total == pytest.approx(exact.kl.total, abs=5 * (5 / 2 / 1000 / 20) ** 0.5)
    assert found.kl.total == pytest.approx(found.rate_distortion.rate, abs=1e-9)


def test_one_kl_is_analytic_and_another_sampled_where_sites_are_in_another_order() -> None:
    """Two levels, bottom-up: KL is E[log q(b) − log p(b | a)] + E KL(q(a | b) ‖ p(a)); its sum is
    the rate.
    """
    case = two_levels(500)
    found = examine(case)
    assert found.kl.how["a"] == "analytic" and found.kl.how["b"].startswith("sampled")
    assert found.kl.total == pytest.approx(found.rate_distortion.rate, abs=1e-9)
    assert (
        abs(found.rate_distortion.elbo - case.mean) < 5 * 0.6 / (500 * 20) ** 0.5
    )  # the guide is exact
    assert found.units.count == 2  # E[a | x] too, although a is drawn given b


@pytest.mark.parametrize(
    "case", [factors(), ppca(300), gamma_poisson(300)], ids=["factors", "ppca", "gamma_poisson"]
)
def test_the_elbo_is_the_negative_sum(case: Exact) -> None:
    found = examine(case).rate_distortion
    assert found.elbo == pytest.approx(-found.rate - found.distortion)
    ll = log_marginal(case.model, case.guide, case.x, 50, compile="off", device="cpu")
    assert abs(found.elbo - ll.elbo) < 5 * (len(case.x[0]) / 20 / len(case.x)) ** 0.5


def test_collapse_is_called_by_its_name() -> None:
    w = (0.0, 0.0)
    collapsed = examine(factors(loadings=w, num_images=200))
    assert collapsed.units.count == 0 and "posterior collapse" in collapsed.warnings[0]
    assert "2 of 5 units are inactive" in examine(factors()).warnings[0]
    assert not examine(ppca(500)).warnings


def test_idle_units_that_cost_are_called_out() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal(x.new_tensor([0.5, 0.0]) * x[:, :1], x.new_tensor([0.8, 0.4])).to_event(
                    1
                ),
            )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost = -log(0.4) + (0.4**2 - 1) / 2
    warnings = diagnose(model, guide, x, device="cpu", information_images=100).warnings
    assert any(f"1 inactive units of z cost {cost:.2f} nats" in text for text in warnings)


# ------------------------------------------------------------------------------------------
# mutual information


@pytest.mark.parametrize(
    "case", [factors(), ppca(400, widen=0.8), two_levels(400), gamma_poisson(400)]
)
def test_information_and_marginal_kl_are_the_rate(case: Exact) -> None:
    found = mutual_information(case.model, case.guide, case.x, device="cpu")
    assert found.rate == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-9)
    assert 0 < found.mutual_information < found.ceiling
    rate = examine(case).rate_distortion.rate
    assert abs(found.rate - rate) < 5 * found.rate_se


@pytest.mark.parametrize("guide_as", ["normal", "flow"])
def test_an_exact_guide_has_the_models_information_and_the_priors_aggregate(guide_as: str) -> None:
    found = mutual_information(*_pair(factors(guide_as)), device="cpu")
    assert (
        abs(found.mutual_information - float(informations().sum()))
        < 4 * found.mutual_information_se + 0.05
    )
    assert -0.01 < found.marginal_kl < 0.1


def test_the_error_is_the_spread_over_sets_of_images() -> None:
    """The jackknife against 40 sets of 200 images, where the aggregate is not the prior (at a KL of
    0 it is too wide).
    """
    every = ppca(8000, shift=1.0)
    found = [
        mutual_information(every.model, every.guide, part, seed=i, device="cpu")
        for i, part in enumerate(every.x.split(200))
    ]
    for name in ("mutual_information", "marginal_kl", "rate"):
        values = torch.tensor([getattr(each, name) for each in found])
        mean_se = sum(getattr(each, f"{name}_se") for each in found) / len(found)
        assert 0.7 < mean_se / float(values.std()) < 1.4


def test_the_ceiling_is_told() -> None:
    w = (40.0, 40.0)
    found = mutual_information(*_pair(factors(num_images=50, loadings=w)), device="cpu")
    assert found.at_ceiling and "≥" in str(found)
    assert any("ceiling" in text for text in examine(factors(num_images=50, loadings=w)).warnings)


@pytest.mark.parametrize(
    "case", [ppca(12), two_levels(12), gamma_poisson(12)], ids=["ppca", "two_levels", "gamma"]
)
def test_densities_of_all_pairs_are_the_guides(case: Exact) -> None:
    """log q(z_n | x_m) by a plate of particles, by rows, and on the diagonal by the kernel itself."""
    pair = Pair.of(case.model, case.guide)
    fields = {"index": torch.arange(12)}
    with torch.no_grad(), pair.active(training=False):
        at = pair.structure(case.x, fields).geometry
        terms: SiteTerms = run(pair.model, pair.guide, case.x, fields, 1, at, "repeat")
        plate, rows = (
            cross_density(pair, case.x, fields, terms.guide, on_rows=on_rows)
            for on_rows in (False, True)
        )
    own: Any = sum(site.log_prob for site in terms.guide.values())
    torch.testing.assert_close(plate, rows)
    torch.testing.assert_close(plate.diagonal(), own[0])
    assert float((plate - plate.diagonal()).abs().max()) > 0.1


# ------------------------------------------------------------------------------------------
# calibration


@pytest.mark.parametrize(
    "case", [ppca(20), two_levels(20), gamma_poisson(20)], ids=["ppca", "two_levels", "gamma"]
)
def test_ranks_under_the_exact_guide_are_uniform(case: Exact) -> None:
    found = sbc_ranks(case.model, case.guide, 5000, 49, like=case.x, device="cpu")
    assert all(float(p.min()) > 1e-3 for p in found.p_values.values()) and "warning" not in str(
        found
    )
    for ranks in found.ranks.values():
        assert len(ranks) == 5000 and int(ranks.min()) == 0 and int(ranks.max()) == 49


@pytest.mark.parametrize(
    ("guide", "word"),
    [({"widen": 0.8}, "narrow"), ({"widen": 1.25}, "wide"), ({"shift": 0.3}, "high")],
)
def test_ranks_under_a_wrong_guide_are_not(guide: dict[str, float], word: str) -> None:
    case = ppca(20, **guide)
    found = sbc_ranks(case.model, case.guide, 5000, 49, like=case.x, device="cpu")
    assert all(float(p.max()) < 1e-6 for p in found.p_values.values()) or "shift" in guide
    assert found.smallest_p < 1e-6 and f"too {word}" in str(found)


def test_ties_of_discrete_latents_are_broken_by_lot() -> None:
    probability, places = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(probability))
            pyro.sample("x", dist.Normal(places[k].unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=probability.log() - (x - places).square() / 2))

    found = sbc_ranks(model, guide, 5000, 49, like=torch.zeros(1, 1), device="cpu")
    assert found.smallest_p > 1e-3
    information = mutual_information(model, guide, torch.randn(100, 1), device="cpu")
    assert information.mutual_information < log(3)


def test_the_truth_and_the_draws_are_independent() -> None:
    """A guide that ignores x, drawn from the generator's state of the simulation, would repeat the
    truth itself.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 100.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for size in (10, 2000):
        ranks = (
            sbc_ranks(model, guide, size, 1, like=torch.zeros(1, 2), device="cpu")
            .ranks["z"]
            .double()
        )
        assert abs(float(ranks.mean()) - 0.5) < 5 * 0.5 / (2 * size) ** 0.5


# ------------------------------------------------------------------------------------------
# any pair


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_diagnosed(form: str) -> None:
    model, guide = fresh(form)
    x = binary_images(30)
    if form == "functions":
        Pair.of(model, guide)  # its parameters come into being with the pair
        log_densities_of(model, guide, x)
    before = torch.get_rng_state()
    found = diagnose(model, guide, x, num_draws=4, batch_size=13, device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert found.rate_distortion.num_images == 30 and found.kl.how == dict.fromkeys(
        found.kl.how, "analytic"
    )
    json.dumps(found.to_dict())
    for words in ("rate", "active units", "KL by dimension", "mutual information"):
        assert words in str(found)


def log_densities_of(model: Any, guide: Any, x: Tensor) -> None:
    pair = Pair.of(model, guide)
    with pair.active():
        pair.structure(x, {"index": torch.arange(len(x))})


def test_batches_change_nothing_but_the_noise() -> None:
    one, many = (examine(factors(), batch_size=size) for size in (1000, 77))
    torch.testing.assert_close(one.kl.values["z"], many.kl.values["z"])
    assert (
        abs(one.rate_distortion.distortion - many.rate_distortion.distortion)
        < 5 * (5 / 2 / 20 / 1000 * 2) ** 0.5
    )


@pytest.mark.parametrize(
    ("options", "word"), [({"num_draws": 1}, "2 or more"), ({"num_draws": 0}, "num_draws")]
)
def test_options_are_refused_in_a_line(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        examine(ppca(20), **options)
    with pytest.raises(UserError, match="one image"):
        diagnose(*_pair(ppca(20))[:2], ppca(20).x[:1], device="cpu")


def test_a_point_mass_has_no_information() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x).to_event(1))

    for measure in (diagnose, mutual_information):
        with pytest.raises(UserError, match="point mass"):
            measure(factors().model, guide, factors().x, device="cpu")


def test_masses_and_densities_are_told_apart() -> None:
    for case, kind in ((ppca(5), "density"), (gamma_poisson(5), "mass")):
        assert (
            log_marginal(case.model, case.guide, case.x, num_samples=1, device="cpu").protocol[
                "kind"
            ]
            == kind
        )
    model, guide = fresh("PyroModules")
    assert (
        log_marginal(model, guide, binary_images(5), num_samples=1, device="cpu").protocol["kind"]
        == "mass"
    )


def _pair(case: Exact) -> tuple[Any, Any, Tensor]:
    return case.model, case.guide, case.x
