"""The exact laws have power: each of four deliberate breaks of the engine is caught by the laws
that should catch it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log, pi
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import UserError
from pyro_vae.evaluation import importance, setup
from pyro_vae.evaluation.weight_sums import WeightSums
from pyro_vae.pair import layouts
from tests.support.exact import Exact, gamma_poisson, ppca
from tests.support.vaes import nonlinear, with_flow

LIMIT = 4.0
"""Standard errors, or, for laws without variance, units of 1e-9 over four."""


def estimate(case: Exact, num_samples: int) -> pv.LogMarginal:
    """Small chunks of draws, so that there are several to be put together."""
    return pv.log_marginal(
        case.model, case.guide, case.x, num_samples=num_samples, device="cpu", compile="off"
    )


# ---- the laws: how far the engine is off, below LIMIT where it is right


def zero_variance(case: Exact) -> float:
    """The exact guide gives log p(x) at every image, to 1e-9."""
    return LIMIT * float((estimate(case, 40).log_px - case.log_px).abs().max()) / 1e-9


def unbiased(case: Exact) -> float:
    """E[Ŵ / p(x)] = 1, in standard errors."""
    ratio = (estimate(case, 40).log_px - case.log_px).exp() - 1.0
    return abs(float(ratio.mean() / (ratio.std() / len(ratio) ** 0.5)))


def bias_removed(case: Exact) -> float:
    """The mean less its bias is the exact mean, in Monte Carlo errors."""
    result = estimate(case, 40)
    return abs(result.mean - result.bias - case.mean) / result.se_mc


def sums_to_one(case: Exact) -> float:
    """Σ_x exp L̂(x) = 1, in standard errors."""
    result = estimate(case, 200)
    share = result.log_px.exp()
    return abs(float(share.sum()) - 1.0) / float((share * result.se).square().sum()) ** 0.5


LAWS: dict[str, Callable[[], float]] = {
    "zero variance, pPCA": lambda: zero_variance(ppca()),
    "zero variance, Gamma–Poisson": lambda: zero_variance(gamma_poisson()),
    "unbiased, pPCA": lambda: unbiased(ppca(1000, widen=1.4, shift=0.3)),
    "bias removed, pPCA": lambda: bias_removed(ppca(1000, widen=1.4, shift=0.3)),
    "unbiased, Bernoulli": lambda: unbiased(nonlinear(2, times=10)),
    "sums to one, flow": lambda: sums_to_one(with_flow()),
}


# ---- the breaks


def mean_of_logs(patch: pytest.MonkeyPatch) -> None:
    """The mean of the chunks' log means, where the log of the mean is right."""
    plain_add = WeightSums.add

    def logs(self: WeightSums, chunks: tuple[Tensor, ...]) -> Tensor:
        total: Tensor = getattr(self, "logs", torch.zeros_like(self.largest))
        for each in chunks:
            total = total + len(each) * (each.double().logsumexp(0) - log(len(each)))
        return total

    def add(self: WeightSums, *chunks: Tensor) -> None:
        plain_add(self, *chunks)
        self.logs = logs(self, chunks)  # type: ignore[attr-defined]

    def log_mean(self: WeightSums, *chunks: Tensor) -> Tensor:
        return logs(self, chunks) / (self.seen + sum(map(len, chunks)))

    patch.setattr(WeightSums, "add", add)
    patch.setattr(WeightSums, "log_mean", log_mean)


def dropped_constant(patch: pytest.MonkeyPatch) -> None:
    """Normal densities without −½ log 2π: it cancels between a Normal prior and a Normal guide, and
    not in a likelihood.
    """
    plain = torch.distributions.Normal.log_prob

    def log_prob(self: Any, value: Tensor) -> Tensor:
        return plain(self, value) + 0.5 * log(2 * pi)

    patch.setattr(torch.distributions.Normal, "log_prob", log_prob)


def scale_of_two(patch: pytest.MonkeyPatch) -> None:
    """Observed sites count twice, as under a plate of twice the batch."""
    plain = layouts._read

    def read(node: Any, *args: Any, **values: Any) -> Any:
        site = plain(node, *args, **values)
        return replace(site, log_prob=2.0 * site.log_prob) if node["is_observed"] else site

    patch.setattr(layouts, "_read", read)


def forgotten_log_k(patch: pytest.MonkeyPatch) -> None:
    """log Σw, where log Σw − log K is right."""
    plain = WeightSums.log_mean

    def log_mean(self: WeightSums, *chunks: Tensor) -> Tensor:
        return plain(self, *chunks) + log(self.seen + sum(map(len, chunks)))

    patch.setattr(WeightSums, "log_mean", log_mean)


BREAKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "mean of logs": (
        mean_of_logs,
        {"unbiased, pPCA", "bias removed, pPCA", "unbiased, Bernoulli", "sums to one, flow"},
    ),
    # the two laws of Bernoulli images and Normal latents are those in which it may cancel
    "dropped constant": (
        dropped_constant,
        {"zero variance, pPCA", "unbiased, pPCA", "bias removed, pPCA"},
    ),
    "scale of two": (scale_of_two, set(LAWS)),
    "forgotten log K": (forgotten_log_k, set(LAWS)),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four draws of each image at a time."""
    monkeypatch.setattr(
        importance, "tile_sizes", lambda num_samples, rows: (min(4, num_samples), 500)
    )


@pytest.fixture
def no_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws are to catch a break by themselves."""
    monkeypatch.setattr(setup, "check_scores", lambda *_, **__: ("", ()))


@pytest.mark.parametrize("law", LAWS)
def test_the_engine_obeys(law: str) -> None:
    assert LAWS[law]() < LIMIT


@pytest.mark.usefixtures("no_oracle")
@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all the laws that it breaks, each well beyond its threshold, and so by at least one."""
    break_it, caught_by = BREAKS[name]
    break_it(monkeypatch)
    found = {law: LAWS[law]() for law in caught_by}
    blind = {law: value for law, value in found.items() if not value > 1.5 * LIMIT}
    assert caught_by and not blind


def test_the_live_oracle_catches_a_break_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the user's own first images, before a number is made."""
    scale_of_two(monkeypatch)
    with pytest.raises(UserError, match=r"differs from pyro\.infer's"):
        LAWS["unbiased, pPCA"]()
