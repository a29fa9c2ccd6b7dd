"""Mean gradients against closed forms and quadrature, for one and two latent levels; variances at
and near the posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from pyro_vae.objectives import (
    CIWAE,
    IWAE,
    MIWAE,
    STL,
    DReG,
    FreeBits,
    Objective,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro_vae.pair.runtime import Pair
from tests.support.grids import thinned
from tests.support.linear_gaussian import CASES, ENCODER, NOISE, Case, X, one_level

ROWS = 60_000
Bound = Callable[[Tensor], Tensor]


def mean(values: Tensor) -> Tensor:
    return values.mean(0)


def log_mean(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - log(len(values))


# an estimator, the bound whose gradient it estimates, and how many draws that bound is a function
# of
LAWS: dict[str, tuple[Objective, Bound, int]] = {
    "Trace_ELBO": (Trace_ELBO(), mean, 1),
    "Trace_ELBO, 2 particles": (Trace_ELBO(2), mean, 1),
    "TraceMeanField_ELBO": (TraceMeanField_ELBO(), mean, 1),
    "FreeBits(0)": (FreeBits(0.0), mean, 1),
    "STL": (STL(), mean, 1),
    "STL, 3 particles": (STL(3), mean, 1),
    "IWAE(2)": (IWAE(2), log_mean, 2),
    "DReG(2)": (DReG(2), log_mean, 2),
    "RenyiELBO(0.5, 2)": (RenyiELBO(0.5, 2), lambda v: 2.0 * log_mean(0.5 * v), 2),
    "RenyiELBO(-1, 2)": (RenyiELBO(-1, 2), lambda v: 0.5 * log_mean(2.0 * v), 2),
    "MIWAE(3, 2)": (MIWAE(3, 2), log_mean, 2),
    "CIWAE(0.4, 2)": (CIWAE(0.4, 2), lambda v: 0.4 * mean(v) + 0.6 * log_mean(v), 2),
}


def goal_needs_a_path(goal: Objective) -> bool:
    return isinstance(goal, STL | DReG | TraceMeanField_ELBO | FreeBits)


def assert_mean(samples: Tensor, exact: Tensor, z: float = 4.5) -> None:
    """The samples' mean ``(P,)`` within ``z`` of its own standard errors, of which not all are
    tiny.
    """
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - exact).abs() <= z * error + 1e-9).all(), (
        samples.mean(0),
        exact,
        error,
    )
    assert (error < 0.05).all()


@pytest.mark.parametrize(("law", "case", "weight"), thinned(LAWS, CASES, [1.0, 0.4]))
def test_mean_gradients_are_the_bounds_own(case: str, law: str, weight: float) -> None:
    objective, bound, num_draws = LAWS[law]
    pair = CASES[case]()
    nodes = 40 if num_draws * pair.levels < 4 else 16
    value, gradient = pair.exact(bound, num_draws, weight, nodes)
    estimate, found = pair.gradients(objective, ROWS, weight)
    assert_mean(found, gradient)
    assert float(estimate) / ROWS == pytest.approx(float(value), abs=0.05)


SCORED = {
    "one level": ("z",),
    "two levels": ("z",),
    "two levels, both": ("z", "u"),
    "two levels, the second": ("u",),
}


@pytest.mark.parametrize(
    ("law", "case", "weight"),
    thinned(
        [name for name, (goal, _, _) in LAWS.items() if not goal_needs_a_path(goal)],
        SCORED,
        [1.0, 0.4],
    ),
)
def test_mean_gradients_without_a_path(case: str, law: str, weight: float) -> None:
    """Score functions with VIMCO's control variate, beside paths where the other site has one."""
    objective, bound, num_draws = LAWS[law]
    pair = replace(CASES[case.split(",")[0]](), scored=SCORED[case])
    nodes = 40 if num_draws * pair.levels < 4 else 16
    assert_mean(
        pair.gradients(objective, ROWS, weight)[1], pair.exact(bound, num_draws, weight, nodes)[1]
    )


@pytest.mark.parametrize(
    ("layout", "law"), thinned(["plate", "rows", "repeat"], ["STL, 3 particles", "DReG(2)"])
)
def test_in_every_layout(law: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, bound, num_draws = LAWS[law]
    monkeypatch.setattr(Pair, "layout", lambda *_, **__: layout)
    pair = CASES["two levels"]()
    assert_mean(pair.gradients(objective, ROWS)[1], pair.exact(bound, num_draws, nodes=16)[1])


def test_the_elbos_gradient_in_closed_form() -> None:
    """The quadrature's own check: E_q[log p(x, z)] + H(q) of two Gaussians, written out."""
    case = one_level()
    mu, w, a, b, s = (case.values[name] for name in case.names)
    loc, variance = a * X + b, exp(2 * s)
    residual = X - w * loc
    exact = [
        loc - mu,
        (residual * loc - w * variance) / NOISE**2,
        X * (w * residual / NOISE**2 - (loc - mu)),
        w * residual / NOISE**2 - (loc - mu),
        1.0 - variance * (1.0 + w**2 / NOISE**2),
    ]
    torch.testing.assert_close(case.exact(mean, 1)[1], torch.tensor(exact, dtype=torch.float64))


# ---- at the posterior, and near it


def posterior(offset: float = 0.0) -> Case:
    """The one-level pair whose q(z | x) is p(z | x), up to ``offset`` in its mean and log scale."""
    case = one_level()
    mu, w = case.values["mu"], case.values["w"]
    precision = 1.0 + w**2 / NOISE**2
    a = w / NOISE**2 / precision
    return case.at(a=a, b=mu / precision + offset, s=-0.5 * log(precision) + offset)


@pytest.mark.parametrize("objective", [STL(), STL(3), DReG(3)])
def test_no_variance_at_the_posterior(objective: Objective) -> None:
    """log p(x, z) − log q(z | x) is log p(x) at every z: a path derivative of the guide is 0 at
    every draw.
    """
    case = posterior()
    value, found = case.gradients(objective, 2000)
    guide = found[:, [case.names.index(name) for name in ENCODER["one level"]]]
    assert float(guide.abs().max()) < 1e-12
    log_px = norm.logpdf(
        X, case.values["w"] * case.values["mu"], (NOISE**2 + case.values["w"] ** 2) ** 0.5
    )
    assert float(value) / 2000 == pytest.approx(log_px, abs=1e-9)
    for other in (Trace_ELBO(), IWAE(3)):
        assert float(case.gradients(other, 2000)[1][:, 2:].std(0).min()) > 0.1


def signal_to_noise(objective: Objective, case: Case, rows: int) -> Tensor:
    """|E ∇| / sd ∇ of the guide's parameters."""
    found = case.gradients(objective, rows)[1][
        :, [case.names.index(name) for name in ENCODER["one level"]]
    ]
    return found.mean(0).abs() / found.std(0)


def test_near_the_posterior_dreg_gains_by_k_and_iwae_loses() -> None:
    """Rainforth et al. 2018: the signal-to-noise ratio of IWAE's guide falls as K^(−1/2); DReG's
    grows as K^(1/2).
    """
    case = posterior(0.1)
    ratios = {
        k: (
            signal_to_noise(IWAE(k), case, 200_000 // k),
            signal_to_noise(DReG(k), case, 200_000 // k),
        )
        for k in (1, 8, 64)
    }
    assert (ratios[64][0] < 0.5 * ratios[1][0]).all()
    assert (ratios[8][1] > 2.0 * ratios[1][1]).all() and (ratios[64][1] > 2.0 * ratios[8][1]).all()
