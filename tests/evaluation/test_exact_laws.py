"""log p(x) where it is known: exact guides have no variance, others are off by what the report
says, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine

from pyro_vae import LogMarginal, log_marginal, log_weights
from pyro_vae.errors import UserError
from pyro_vae.evaluation import tiling, weight_sums
from pyro_vae.evaluation.traced import Draw, EagerWeights
from pyro_vae.evaluation.weight_sums import (
    WeightSums,
    generalized_pareto_shape,
    split_draws,
    tail_length,
)
from tests.support import arviz_check
from tests.support.exact import Exact, gamma_poisson, ppca, two_levels

EXACT: dict[str, Callable[[], Exact]] = {
    "ppca": ppca,
    "two levels": two_levels,
    "gamma-poisson": gamma_poisson,
}
TIERS = ("off", "graph")


def estimate(case: Exact, num_samples: int, **options: Any) -> LogMarginal:
    """``log_marginal`` on the case's own images."""
    return log_marginal(
        case.model,
        case.guide,
        options.pop("x", case.x),
        num_samples=num_samples,
        device="cpu",
        **options,
    )


# ---- an exact guide


@pytest.mark.parametrize("name", EXACT)
def test_every_weight_of_the_exact_guide_is_px(name: str) -> None:
    case = EXACT[name]()
    torch.manual_seed(0)
    weights = log_weights(case.model, case.guide, case.x, num_particles=20)
    assert weights.shape == (20, len(case.x))
    torch.testing.assert_close(weights, case.log_px.expand(20, -1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", EXACT)
def test_constant_weights_have_no_error_and_no_tail(name: str, tier: str) -> None:
    case = EXACT[name]()
    result = estimate(case, 100, compile=tier)
    torch.testing.assert_close(result.log_px, case.log_px, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.elbo_px, case.log_px, rtol=0, atol=1e-9)
    assert result.se_mc <= 1e-6 and abs(result.bias) <= 1e-12
    assert (result.khat == -torch.inf).all() and result.high_khat == 0.0
    torch.testing.assert_close(result.ess, torch.full_like(result.ess, 100.0))
    assert result.warnings == ()


# ---- an imperfect one

WIDE, NARROW, MOVED = {"widen": 1.3}, {"widen": 0.85}, {"widen": 1.1, "shift": 0.3}


@pytest.mark.parametrize("guide", [WIDE, NARROW, MOVED], ids=["wide", "narrow", "moved"])
@pytest.mark.parametrize("tier", TIERS)
def test_an_imperfect_guide_is_off_by_its_bias_and_error(
    guide: dict[str, float], tier: str
) -> None:
    case = ppca(num_images=200, **guide)
    result = estimate(case, 500, compile=tier)
    assert abs(result.mean - result.bias - case.mean) < 4 * result.se_mc
    assert result.lower95 < case.mean
    assert result.lower95 == result.mean - log(20) / 200
    assert result.elbo < result.mean < case.mean + 4 * result.se_mc
    per_image = (result.log_px - case.log_px + result.se.square() / 2) / result.se
    assert (
        per_image.abs().max() < 6
    )  # of 200 images; the delta method's own errors are no exact normals
    assert 0.8 < float(per_image.std()) < 1.25  # 1, with a standard error of 0.05


def test_the_bounds_rise_with_the_draws() -> None:
    case = ppca(num_images=200, widen=1.4, shift=0.3)
    bounds = [estimate(case, k, seed=k) for k in (10, 100, 1000)]
    elbo = log_marginal(case.model, case.guide, case.x, num_samples=1000, seed=7).elbo_px
    elbo_error = (
        float(
            log_weights(case.model, case.guide, case.x, num_particles=500).var(0).mean()
            / 1000
            / 200
        )
        ** 0.5
    )
    chain = [
        (float(elbo.mean()), elbo_error),
        *((b.mean, b.se_mc) for b in bounds),
        (case.mean, 0.0),
    ]
    for (lower, first), (upper, second) in pairwise(chain):
        assert lower <= upper + 4 * (first**2 + second**2) ** 0.5


@pytest.mark.parametrize(("num_samples", "rows"), [(200, 5), (200, 1), (200, 50_000), (37, 2)])
def test_the_curve_is_of_the_first_of_the_same_draws(
    num_samples: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over images of log (Σw / k) of the first k weights, though they were summed in many
    chunks or in one.
    """
    drawn: list[torch.Tensor] = []
    plain = EagerWeights.__call__

    def recorded(self: EagerWeights, x: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> Draw:
        draw = plain(self, x, fields)

        def drawing(k: int) -> torch.Tensor:
            drawn.append(draw(k))
            return drawn[-1]

        return drawing

    case = ppca(num_images=1, widen=1.4)
    monkeypatch.setattr(EagerWeights, "__call__", recorded)
    monkeypatch.setitem(tiling.ROWS, "cpu", rows)
    found = estimate(case, num_samples, compile="off")
    weights = torch.cat(drawn)[-num_samples:]  # what came before is no part of the estimate
    expected = {k: float(weights[:k].logsumexp(0) - log(k)) for k in tiling.stops(num_samples)}
    assert len(expected) == 3 and found.curve == pytest.approx(expected, abs=1e-12)
    assert found.mean == found.curve[num_samples]


@pytest.mark.parametrize(
    ("rows", "tier"), [(30, "off"), (90, "graph")]
)  # tiles of 10 images, and of 30
def test_noise_of_different_tiles_is_independent(
    rows: int, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image many times: each has an estimate of its own, and they spread as their standard
    errors say.
    """
    case = ppca(num_images=1, widen=1.3)
    monkeypatch.setitem(tiling.ROWS, "cpu", rows)
    result = estimate(case, 30, x=case.x.expand(120, -1), compile=tier)
    assert len(result.log_px.unique()) == 120
    assert 0.7 < float(result.log_px.std() / result.se.square().mean().sqrt()) < 1.4


@pytest.mark.parametrize("rows", [37, 600, 50_000])
def test_chunks_and_order_change_no_more_than_the_noise(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ppca(num_images=60, widen=1.2)
    reference = estimate(case, 300, seed=1)
    monkeypatch.setitem(tiling.ROWS, "cpu", rows)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for result in (estimate(case, 300, seed=2), estimate(case, 300, seed=3, x=case.x[order])):
        error = (result.se_mc**2 + reference.se_mc**2) ** 0.5
        assert abs(result.mean - reference.mean) < 4 * error
    per_image = result.log_px - reference.log_px[order]
    assert per_image.abs().max() < 6 * float(
        (result.se.square() + reference.se[order].square()).sqrt().max()
    )


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("rows", [37, 600, 50_000])
def test_fields_stay_with_their_images(
    rows: int, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x − y ~ pPCA, with the exact guide's means in a table by ``index``: every image has its own y
    and row.
    """
    case = ppca(num_images=23)
    monkeypatch.setitem(tiling.ROWS, "cpu", rows)
    table = poutine.trace(case.guide).get_trace(case.x).nodes["latent"]["fn"]
    y = torch.arange(23, dtype=torch.float64)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        case.model(x - y.unsqueeze(-1))

    def guide(x: torch.Tensor, index: torch.Tensor) -> None:
        with pyro.plate("images", x.shape[0]):
            pyro.sample(
                "latent",
                dist.MultivariateNormal(table.loc[index], scale_tril=table.scale_tril[index]),
            )

    result = log_marginal(
        model, guide, case.x + y.unsqueeze(-1), num_samples=30, device="cpu", compile=tier, y=y
    )
    torch.testing.assert_close(result.log_px, case.log_px, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 2, 7, 60, 5000])
@pytest.mark.parametrize("rows", [1, 10, 333, 2000])
def test_tiles_cover_the_draws(num_samples: int, rows: int) -> None:
    chunk, images = tiling.tile_sizes(num_samples, rows)
    assert 1 <= chunk <= min(num_samples, rows) and images >= 1
    assert chunk * images <= max(rows, 1)


def test_one_seed_one_number() -> None:
    case = ppca(widen=1.2)
    first, again, other = (estimate(case, 50, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.log_px, again.log_px) and not torch.equal(first.log_px, other.log_px)


def test_the_callers_random_state_is_left_alone() -> None:
    case = ppca(widen=1.2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    estimate(case, 50)
    assert torch.equal(torch.get_rng_state(), before)


# ---- the report


@pytest.mark.parametrize("num_samples", [2, 30, 400])
def test_the_bias_is_the_squared_error_times_half_the_images(num_samples: int) -> None:
    result = estimate(ppca(widen=1.5, shift=0.4), num_samples)
    assert result.bias == pytest.approx(-result.num_images * result.se_mc**2 / 2, rel=1e-12)


def test_the_total_error_is_that_of_the_set() -> None:
    """For a guide without error: the standard error of the exact log p(x) as a sample; unknown for
    one image.
    """
    case = ppca()
    result = estimate(case, 10)
    assert result.se_total == pytest.approx(float(case.log_px.std()) / 40**0.5, rel=1e-9)
    one = estimate(case, 10, x=case.x[:1])
    assert np.isnan(one.se_total) and one.mean == pytest.approx(float(case.log_px[0]), abs=1e-9)


def test_one_draw_has_no_errors() -> None:
    result = estimate(ppca(widen=1.5), 1)
    assert np.isnan([result.se_mc, result.bias]).all() and result.khat.isnan().all()
    assert result.mean == result.elbo and np.isfinite(result.se_total)
    assert any("one draw" in text for text in result.warnings)
    assert "nan" in str(result)


def test_the_protocol_is_in_the_headline() -> None:
    case = ppca(widen=1.2)
    result = estimate(case, 30, protocol={"data": "pPCA, drawn"}, seed=8)
    text = str(result)
    for part in (
        "IW-30",
        "N = 40",
        "pPCA, drawn",
        "seed 8",
        "float64",
        "proposal guide",
        result.protocol["sha256"][:12],
    ):
        assert part in text
    assert result.protocol["sha256"] != estimate(case, 30, x=case.x.flip(0)).protocol["sha256"]
    report = result.to_dict()
    assert report["mean"] == result.mean and report["num_samples"] == 30


def test_bits_per_dimension_are_nats_over_log_two() -> None:
    result = estimate(ppca(widen=1.2), 30, bits_offset=8.0)
    assert result.bits_per_dim == pytest.approx(8.0 - result.mean / (6 * log(2)), rel=1e-12)
    assert estimate(ppca(widen=1.2), 30).bits_per_dim is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": 2.5}, "num_samples=2.5"),
        ({"num_samples": 5, "proposal": "guid"}, "did you mean 'Guide'"),
        ({"num_samples": 5, "precision": "float16"}, "precision"),
        ({"num_samples": 5, "compile": "indcutor"}, "did you mean 'inductor'"),
        ({"num_samples": 5, "device": "gpu"}, "unknown device"),
    ],
)
def test_options_are_refused_in_a_line(options: dict[str, Any], word: str) -> None:
    case = ppca()
    with pytest.raises(UserError, match=word) as error:
        log_marginal(case.model, case.guide, case.x, **options)
    assert "\n" not in str(error.value)


# ---- the streaming sums


def random_weights(num_samples: int, num_images: int = 12, spread: float = 8.0) -> torch.Tensor:
    """Log weights of very different sizes, some −inf, one image with none that is finite."""
    random = torch.Generator().manual_seed(num_samples)
    weights = spread * torch.randn(num_samples, num_images, generator=random, dtype=torch.float64)
    weights = weights + 500 * torch.randn(num_images, generator=random, dtype=torch.float64)
    weights[torch.rand(weights.shape, generator=random) < 0.2] = -torch.inf
    weights[:, 3] = -torch.inf
    return weights


def stream(weights: torch.Tensor, chunk: int) -> WeightSums:
    """The weights taken in chunk by chunk."""
    sums = WeightSums(weights.shape[1], len(weights), torch.device("cpu"))
    for part in weights.split(chunk):
        sums.add(part)
    return sums


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_streaming_equals_one_pass(chunk: int) -> None:
    weights = random_weights(300)
    found = stream(weights, chunk).finish()
    torch.testing.assert_close(
        found["log_px"], weights.logsumexp(0) - log(300), rtol=1e-10, atol=1e-10
    )
    share = torch.softmax(weights, 0)
    torch.testing.assert_close(
        found["ess"], 1 / share.square().sum(0), rtol=1e-10, atol=0, equal_nan=True
    )
    v = (share.square().sum(0) - 1 / 300) * 300 / 299
    torch.testing.assert_close(found["se"].square(), v, rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(
        found["max_weight_share"], share.amax(0), rtol=1e-10, atol=0, equal_nan=True
    )
    torch.testing.assert_close(found["elbo_px"], weights.mean(0), rtol=1e-10, atol=1e-10)
    assert found["log_px"][3] == -torch.inf


@pytest.mark.parametrize("share", [0.05, 0.1, 1 / 3, 0.5])
def test_each_stratum_has_the_nearest_whole_number_of_its_share(share: float) -> None:
    """At least one draw where there are two; all of them together are the chunk."""
    for number in range(2, 200):
        first, second = split_draws(number, (1 - share, share))
        assert first + second == number and (abs(second - share * number) <= 0.5 or second == 1)
    assert split_draws(1, (1 - share, share)) == [1, 0]
    sums = WeightSums(1, 56, torch.device("cpu"), (1 - share, share))
    for _ in range(2):
        sums.add(torch.zeros(28, 1))
    assert sums.counts == [2 * count for count in split_draws(28, (1 - share, share))]


def test_the_relative_variance_is_the_delta_methods() -> None:
    """v = var(w) / (K · mean(w)²), with the unbiased variance."""
    weights = random_weights(80, spread=1.0)[:, [0, 1, 2]]
    w = (weights - weights.amax(0)).exp()
    torch.testing.assert_close(
        stream(weights, 9).finish()["se"].square(), w.var(0) / (80 * w.mean(0).square())
    )


def test_memory_does_not_grow_with_the_draws() -> None:
    """The state is the tail and a few numbers an image, however many draws have been seen."""

    def numbers(sums: WeightSums) -> int:
        return sum(
            value.numel() for value in vars(sums).values() if isinstance(value, torch.Tensor)
        )

    sums, sizes = WeightSums(4, 10_000, torch.device("cpu")), []
    for part in torch.randn(10_000, 4, dtype=torch.float64).split(1000):
        sums.add(part)
        sizes.append(numbers(sums))
    assert len(set(sizes)) == 1 and sizes[0] < 4 * (tail_length(10_000) + 20)


def test_an_infinite_weight_is_seen() -> None:
    weights = torch.zeros(10, 2)
    weights[4, 1] = torch.inf
    assert stream(weights, 3).finish()["log_px"].tolist() == [0.0, torch.inf]


# ---- k̂


WEIGHTS: dict[str, Callable[[int], torch.Tensor]] = {
    "narrow": lambda k: 0.3 * normal_weights(k),
    "wide": lambda k: 2.0 * normal_weights(k),
    "far below 0": lambda k: 2.0 * normal_weights(k) - 1000,
    "beyond float64's range": lambda k: 300 * normal_weights(k),
}


def normal_weights(num_samples: int) -> torch.Tensor:
    return torch.randn(
        num_samples, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


@pytest.mark.parametrize(
    "num_samples", [30, 50, 225, 900, 3600]
)  # where M needs no rounding: 1.x rounds down
@pytest.mark.parametrize("name", WEIGHTS)
def test_khat_from_the_tail_is_arvizs_from_all(num_samples: int, name: str) -> None:
    weights = WEIGHTS[name](num_samples)
    found = stream(weights, 113).finish()["khat"]
    np.testing.assert_allclose(
        found, arviz_check.khat_of_all(weights.T.numpy()), rtol=1e-10, atol=1e-10
    )


def test_khat_is_one_number_under_every_arviz() -> None:
    """The figures of ArviZ 0.23; where weights are tied with the cutoff, 1.x has another tail."""
    wide = stream(WEIGHTS["wide"](50), 50).finish()["khat"][:3]
    np.testing.assert_allclose(
        wide, (0.11142918449696, 0.49866463364047, 0.43321299844645), rtol=0, atol=1e-12
    )
    rounded = (2 * WEIGHTS["wide"](1000)).round() / 2
    tied = stream(rounded, 1000).finish()["khat"][:3]
    np.testing.assert_allclose(
        tied, (0.33143948386803, 0.46830252685226, 0.62173549252916), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("num_samples", [6, 13, 300])
@pytest.mark.parametrize("shape", [-0.5, 0.2, 1.5])
def test_the_fit_is_arvizs(num_samples: int, shape: float) -> None:
    uniform = torch.rand(
        num_samples, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    excess = (((1 - uniform) ** -shape - 1) / shape).sort().values
    expected = arviz_check.shape_of(excess.numpy())
    found = generalized_pareto_shape(excess.flip(0).unsqueeze(1), torch.tensor([num_samples]))
    assert float(found) == pytest.approx(expected, rel=0, abs=1e-12)


def test_fits_of_several_lengths_at_once_are_those_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever else is fitted with an image, in whatever parts, and without a loop over images."""
    weights = random_weights(900, 60, spread=4.0)
    weights[200:, 7] = -torch.inf  # a tail of its own length
    weights[4:, 8] = -torch.inf  # and none
    whole = stream(weights, 300).finish()["khat"]
    alone = torch.cat([stream(rows, 300).finish()["khat"] for rows in weights.split(1, dim=1)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12, equal_nan=True)
    assert whole[:3].isfinite().all() and whole[[3, 8]].isnan().all()
    fits: list[int] = []
    plain = weight_sums.generalized_pareto_shape

    def counted(excess: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        fits.append(excess.shape[1])
        return plain(excess, lengths)

    monkeypatch.setattr(weight_sums, "generalized_pareto_shape", counted)
    stream(weights, 300).finish()
    assert fits == [60]
    monkeypatch.setattr(weight_sums, "FITTED", 20 * 90 * 39)
    parts = stream(weights, 300).finish()["khat"]
    assert fits[1:] == [20, 20, 20]
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12, equal_nan=True)


def test_khat_needs_a_tail() -> None:
    """Of five weights above the cutoff; where all weights are equal, k̂ has a limit."""
    weights = normal_weights(400)
    assert stream(weights[:20], 20).finish()["khat"].isnan().all()
    assert stream(torch.full_like(weights, -3.0), 50).finish()["khat"].tolist() == [-torch.inf] * 6
    assert stream(torch.full_like(weights[:20], -3.0), 20).finish()["khat"].isnan().all()
    few = torch.zeros_like(weights)
    few[:4] = torch.arange(1.0, 5.0)[:, None]
    none = torch.full_like(weights, -torch.inf)
    for tail in (few, none):
        assert stream(tail, 50).finish()["khat"].isnan().all()


@pytest.mark.parametrize("spread", [1e-2, 1e-1, 1.0])
def test_khat_is_of_the_shape_of_the_weights_and_not_of_their_size(spread: float) -> None:
    """w and c w have one k̂, and 1 + s u, u uniform, has a bounded tail; but what float32 rounds is
    a constant.
    """
    uniform = torch.rand(2000, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.log1p(spread * uniform)
    found = stream(weights, 500).finish()
    torch.testing.assert_close(
        found["khat"], stream(weights + 700.0, 500).finish()["khat"], rtol=0, atol=1e-5
    )
    assert bool(
        ((found["khat"] < -0.3) & found["khat"].isfinite()).all()
    )  # −1, but for the prior at ½
    rounded = (-700 + 1e-4 * uniform).float().double()
    assert len(rounded.unique()) > 1 and bool(
        (stream(rounded, 500).finish()["khat"] == -torch.inf).all()
    )


@pytest.mark.parametrize("num_samples", [100, 1200])
def test_two_values_of_a_weight_have_a_bounded_tail(num_samples: int) -> None:
    """As of a latent of two classes."""
    weights = torch.zeros(num_samples, 2, dtype=torch.float64)
    weights[: num_samples // 12] = 1.0
    assert bool((stream(weights, 50).finish()["khat"] < -1).all())


def test_khat_of_a_pareto_tail_is_its_shape() -> None:
    """Guide N(0, c²I) for N(0, I) in 2 dimensions: the weights are exactly Pareto with k = 1 − c²
    (evaluation.md, case 4).
    """
    c, shape = 0.7, 1 - 0.7**2
    z = c * torch.randn(
        5000, 100, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    weights = (-0.5 * z.square() + 0.5 * (z / c).square()).sum(-1)
    assert float(stream(weights, 500).finish()["khat"].mean()) == pytest.approx(shape, abs=0.05)


@pytest.mark.slow
def test_the_bias_law() -> None:
    """K · bias → −½ Var(w)/Z², Var(w)/Z² = c²/√(2c² − 1) · exp(μ²/(2c² − 1)) − 1 in one dimension
    (evaluation.md, case 3).
    """
    c2, mu, k = 0.9, 0.2, 50
    z = mu + c2**0.5 * torch.randn(
        k, 200_000, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    weights = -0.5 * z.square() + 0.5 * (z - mu).square() / c2 + 0.5 * log(c2)
    variance = c2 / (2 * c2 - 1) ** 0.5 * np.exp(mu**2 / (2 * c2 - 1)) - 1
    sums = stream(weights, k).finish()
    error = float(sums["log_px"].std()) / 200_000**0.5
    assert float(sums["log_px"].mean()) == pytest.approx(
        -variance / (2 * k), abs=4 * error + 2 * variance / k**2
    )
    assert float(sums["se"].square().mean()) == pytest.approx(variance / k, rel=0.05)
