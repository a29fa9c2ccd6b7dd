"""The adapter against figures computed by hand, under whichever ArviZ is installed: `.ci/run` has
0.23 and 1.x.
"""

from __future__ import annotations

import numpy as np
import pytest

from pyro_vae.evaluation import arviz_compat


def two(number: int = 400) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    hard = -2000 + 50 * random.normal(size=number)  # what makes an image hard for both
    return {"a": hard + random.normal(size=number), "b": hard + 0.3 + random.normal(size=number)}


def optimal(log_px: dict[str, np.ndarray]) -> dict[str, float]:
    """Stacking weights by the EM of a mixture with known components."""
    values = np.stack(list(log_px.values()), 1)
    density = np.exp(values - values.max(1, keepdims=True))
    weight = np.full(values.shape[1], 1 / values.shape[1])
    for _ in range(20_000):
        share = density * weight
        weight = (share / share.sum(1, keepdims=True)).mean(0)
    return dict(zip(log_px, weight, strict=True))


def test_a_paired_error_is_the_sd_of_the_differences() -> None:
    values = two()
    found = arviz_compat.paired_differences(values)
    difference = values["a"] - values["b"]
    assert list(found) == ["b", "a"] and found["b"] == (0.0, 0.0)
    np.testing.assert_allclose(
        found["a"], (difference.mean(), difference.std(ddof=1) / 20), rtol=1e-9
    )


def test_stacking_is_the_best_mixture() -> None:
    expected = optimal(two())
    assert 0.1 < expected["a"] < 0.9
    for name, weight in arviz_compat.stacking_weights(two()).items():
        assert abs(weight - expected[name]) < 1e-3


@pytest.mark.parametrize("apart", [800.0, 5000.0])
def test_stacking_bears_images_that_only_one_model_can_explain(apart: float) -> None:
    """Half of the images are hopeless for each model: the mixture is half and half, and no
    denominator is 0.
    """
    first = np.where(np.arange(100) % 2 == 0, 0.0, -apart)
    found = arviz_compat.stacking_weights({"even": first, "odd": -apart - first})
    assert abs(found["even"] - 0.5) < 1e-3


def test_an_elpd_is_the_sum_with_its_error_and_khat() -> None:
    log_px, khat = two()["a"], np.linspace(-0.2, 1.0, 400)
    elpd = arviz_compat.elpd_data(log_px, khat, 5000)
    values = {
        name: getattr(elpd, name)
        for name in ("n_samples", "n_data_points", "warning", "scale", "good_k", "se")
    }
    assert values == {
        **{"n_samples": 5000, "n_data_points": 400, "warning": True, "scale": "log", "good_k": 0.7},
        "se": pytest.approx(np.sqrt(400 * log_px.var())),
    }
    np.testing.assert_array_equal(elpd.pareto_k, khat)
    assert "5000" in str(elpd)


def test_groups_carry_the_attributes() -> None:
    import xarray

    group = xarray.Dataset({"z": (("chain", "draw"), np.zeros((1, 3)))})
    data = arviz_compat.inference_data({"posterior": group, "prior": group}, {"seed": 1})
    for part in (data, data["posterior"], data["prior"]):
        assert part.attrs["seed"] == 1
    assert data["posterior"]["z"].shape == (1, 3)
