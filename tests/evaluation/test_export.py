"""Exports: exact posteriors come out again, intervals are flagged, and no log weight is passed off
as a log likelihood.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation import arviz_export
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.evaluation.result import LogMarginal
from tests.support.exact import Exact, gamma_poisson, ppca, two_levels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces its next release
    import arviz
    import pandas
    from matplotlib import pyplot as plt

ARVIZ_0 = arviz.__version__.startswith("0.")
OPTIONS: dict[str, Any] = {"compile": "off", "device": "cpu"}


def estimate(case: Exact, num_samples: int = 2000) -> LogMarginal:
    return log_marginal(case.model, case.guide, case.x, num_samples=num_samples, **OPTIONS)


def exported(case: Exact, ll: LogMarginal | None = None, **options: Any) -> Any:
    chosen = {"num_images": 4, "num_draws": 2000, "device": "cpu", **options}
    return arviz_export.to_inference_data(
        ll or estimate(case), case.model, case.guide, case.x, **chosen
    )


def ppca_posterior(case: Exact) -> tuple[Tensor, Tensor]:
    """Mean ``(N, D)`` and covariance of the exact posterior, which is what the unwidened guide
    samples.
    """
    with pyro.plate_stack("none", ()):
        trace = pyro.poutine.trace(case.guide).get_trace(case.x)
    fn = trace.nodes["latent"]["fn"]
    return fn.mean, fn.covariance_matrix[0]


# ------------------------------------------------------------------------------------------
# InferenceData


@pytest.mark.parametrize(("widen", "shift"), [(1.0, 0.0), (1.5, 0.0), (1.3, 0.4)])
def test_resampled_draws_have_the_posteriors_moments(widen: float, shift: float) -> None:
    """Whatever the guide, what its weights leave is the exact posterior: mean and covariance within
    5 standard errors.
    """
    mean, covariance = ppca_posterior(ppca())
    case = ppca(widen=widen, shift=shift)
    data = exported(case, estimate(case, 20_000))
    z = data["posterior"]["latent"].values[0]  # (draw, image, latent)
    error = (covariance.diagonal() / 2000).sqrt().numpy() * 1.3  # candidates that are drawn twice
    assert (np.abs(z.mean(0) - mean[:4].numpy()) < 5 * error).all()
    found = np.stack([np.cov(z[:, i].T) for i in range(4)])
    scale = covariance.diagonal().outer(covariance.diagonal()).sqrt().numpy()
    assert (np.abs(found - covariance.numpy()) < 5 * 1.3 * scale * (2 / 2000) ** 0.5).all()


def test_prior_and_predictive_have_their_moments() -> None:
    case = two_levels()
    data = exported(case)
    a, b = (data["prior"][name].values[0] for name in ("a", "b"))
    assert (
        abs(a.var() - 1.0) < 5 * (2 / a.size) ** 0.5
        and abs((b - a).var() - 0.64) < 5 * 0.64 * (2 / a.size) ** 0.5
    )
    predicted, drawn = (
        data["posterior_predictive"]["x"].values[0, ..., 0],
        data["posterior"]["b"].values[0],
    )
    noise = predicted - drawn  # x | b ~ N(b, 0.5²), image by image and draw by draw
    assert (
        abs(noise.mean()) < 5 * 0.5 / noise.size**0.5
        and abs(noise.var() - 0.25) < 5 * 0.25 * (2 / noise.size) ** 0.5
    )


def test_dimensions_groups_and_attributes() -> None:
    case = ppca()
    ll = estimate(case)
    data = exported(case, ll, num_images=3, num_draws=50)
    assert data["posterior"]["latent"].shape == (1, 50, 3, 3)
    assert data["posterior"]["latent"].dims[:3] == ("chain", "draw", "image")
    assert data["posterior_predictive"]["pixels"].dims == ("chain", "draw", "image", "pixel")
    np.testing.assert_array_equal(data["observed_data"]["pixels"].values, case.x[:3].numpy())
    np.testing.assert_array_equal(data["constant_data"]["log_px"].values, ll.log_px[:3].numpy())
    assert data.attrs["sha256"] == ll.protocol["sha256"] and data["posterior"].attrs["seed"] == 0
    names = set(data.groups()) if ARVIZ_0 else set(data.children)
    assert names == {"posterior", "posterior_predictive", "prior", "observed_data", "constant_data"}


def test_there_is_nothing_for_loo_to_misread() -> None:
    with pytest.raises(TypeError, match="log likelihood"):
        arviz.loo(exported(ppca()))


@pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="netCDF needs h5py")
def test_a_file_holds_it(tmp_path: Path) -> None:
    case = ppca()
    ll = log_marginal(
        case.model,
        case.guide,
        case.x,
        100,
        protocol={"data": "made", "known": None, "list": [1]},
        **OPTIONS,
    )
    exported(case, ll).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert (tmp_path / "a.nc").stat().st_size > 1000


def test_one_seed_one_result_and_the_callers_random_state_is_left_alone() -> None:
    case = ppca()
    ll = estimate(case)
    before = torch.get_rng_state()
    first, again, other = (
        exported(case, ll, seed=seed)["posterior"]["latent"].values for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_images_that_were_not_evaluated_are_refused() -> None:
    case = ppca()
    with pytest.raises(UserError, match="is not the data of which log p"):
        arviz_export.to_inference_data(estimate(case), case.model, case.guide, case.x + 1)
    with pytest.raises(UserError, match="39 images"):
        arviz_export.to_inference_data(estimate(case), case.model, case.guide, case.x[1:])


def test_fields_are_constant_data_and_reach_the_programs() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("image", dist.Normal(y, 0.1))  # the name of a dimension
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(-1, 2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("image", dist.Normal(y, 0.12))

    x, y = torch.zeros(12, 2), torch.arange(12.0)
    ll = log_marginal(model, guide, x, 500, y=y, **OPTIONS)
    data = arviz_export.to_inference_data(ll, model, guide, x, num_images=3, device="cpu", y=y)
    np.testing.assert_array_equal(data["constant_data"]["y"].values, [0, 1, 2])
    np.testing.assert_allclose(
        data["prior"]["image_value"].values.mean((0, 1)), [0, 1, 2], atol=0.05
    )
    np.testing.assert_allclose(
        data["posterior_predictive"]["x"].values.mean((0, 1, 3)), [0, 1, 2], atol=0.2
    )


def test_resampling_is_by_weight() -> None:
    """Draw k is chosen ⌊n wₖ⌋ or ⌈n wₖ⌉ times."""
    weights = torch.softmax(
        3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0
    )
    torch.manual_seed(0)
    chosen = arviz_export.resample(weights.log() - 900, 1000)
    for image in range(5):
        count, expected = chosen[:, image].bincount(minlength=40), 1000 * weights[:, image]
        assert bool(((count >= expected.floor()) & (count <= expected.ceil())).all())
    assert not torch.equal(chosen[:, 0], chosen[:, 0].sort().values)


# ------------------------------------------------------------------------------------------
# ELPD and tables


def test_an_elpd_carries_the_images() -> None:
    ll = estimate(ppca(widen=1.5))
    elpd = ll.to_elpd()
    pointwise = elpd["loo_i"] if ARVIZ_0 else elpd.elpd_i
    np.testing.assert_array_equal(pointwise.values, ll.log_px.numpy())
    np.testing.assert_array_equal(elpd.pareto_k.values, ll.khat.numpy())
    assert elpd.se == pytest.approx(float((40 * ll.log_px.var(correction=0)).sqrt()))


def test_arviz_compares_and_draws_it() -> None:
    results = {
        "exact": estimate(ppca()).to_elpd(),
        "far": estimate(ppca(shift=2.0), 20).to_elpd(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = arviz.compare(results)
        arviz.plot_compare(table)
        arviz.plot_khat(results["far"])
    plt.close("all")
    assert list(table.index) == ["exact", "far"]


def test_the_table_has_each_images_interval() -> None:
    ll = estimate(ppca(widen=1.3), 3000)
    table = ll.per_image()
    columns = [
        "image",
        "log_px",
        "se",
        "bias",
        "ess",
        "khat",
        "max_weight_share",
        "lower",
        "upper",
        "flag",
    ]
    assert list(table.columns) == columns and len(table) == 40
    assert table["bias"].mean() == pytest.approx(ll.bias)
    np.testing.assert_allclose(
        (table["lower"] + table["upper"]) / 2, table["log_px"] - table["bias"]
    )
    np.testing.assert_allclose(table["upper"] - table["lower"], 2 * 1.96 * table["se"])


def test_flags_are_the_rule() -> None:
    ll = estimate(ppca(), 400)
    khat = torch.tensor([0.4, 0.49, 0.5, 0.9, torch.nan, -torch.inf, 0.1, 0.1], dtype=torch.float64)
    ess = torch.tensor([400, 300, 400, 400, 400, 400, 299, 5], dtype=torch.float64)
    few = {n: getattr(ll, n)[:8] for n in TENSORS}
    flagged = LogMarginal(**{**vars(ll), **few, "khat": khat, "ess": ess}).per_image()["flag"]
    assert [bool(flag) for flag in flagged] == [False, False, True, True, True, False, True, True]
    assert set(flagged) == {"", "interval unsound"}


TENSORS = ("log_px", "se", "elbo_px", "max_weight_share", "debiased_px")


def test_the_csv_holds_the_table_to_the_last_digit(tmp_path: Path) -> None:
    ll = estimate(gamma_poisson(), 50)
    path = ll.to_csv(tmp_path / "new" / "images.csv")
    again = pandas.read_csv(path, keep_default_na=False, na_values={"khat": [""]})
    pandas.testing.assert_frame_equal(again, ll.per_image(), rtol=1e-15, check_dtype=False)
    assert [file.name for file in path.parent.iterdir()] == ["images.csv"]


@pytest.mark.parametrize("num_samples", [1, 20, 2000])
def test_the_summary_answers_doubts(num_samples: int) -> None:
    ll = estimate(ppca(widen=1.3), num_samples)
    text = ll.summary()
    assert text.startswith(str(ll))
    for words in (
        "95% lower bound",
        "draws",
        "ESS by image",
        "k̂ by image",
        "sound per-image intervals",
        "is no bound",
    ):
        assert words in text
    assert "nan" not in text.removeprefix(str(ll)) or num_samples == 1
