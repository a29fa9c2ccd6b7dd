"""Compatibility with ArviZ 0.23 (Python 3.11) and 1.x (Python ≥ 3.12)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from math import log10
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray

FAINTEST = -500.0
"""Nats below an image's best model, from which a model adds nothing to a mixture: exp(−500) is a
float64, its inverse too.
"""


# ------------------------------------------------------------------------------------------
# comparison


def elpd_data(log_px: NDArray[Any], khat: NDArray[Any], num_samples: int) -> Any:
    """log p(x) of each image as ArviZ's pointwise elpd: what ``az.compare``, ``az.plot_khat``,
    ``az.plot_compare`` take.
    """
    import xarray

    good_k = good_khat(num_samples)
    known = {
        "elpd": float(log_px.sum()),
        "se": float(np.sqrt(len(log_px) * log_px.var())),  # ArviZ divides by N in a variance
        "p": float("nan"),
        "n_samples": num_samples,
        "n_data_points": len(log_px),
        "warning": bool((khat > good_k).any()),
        "elpd_i": xarray.DataArray(log_px, dims="image", name="elpd_i"),
        "pareto_k": xarray.DataArray(khat, dims="image", name="pareto_k"),
        "scale": "log",
        "good_k": good_k,
    }
    with _quiet():
        if _is_one():
            from arviz_stats import utils

            made = getattr(utils, "ELPDDataLOO", None)  # 1.0 has one class, with a kind
            return utils.ELPDData(kind="loo", **known) if made is None else made(**known)
        from arviz.stats.stats_utils import ELPDData

        renamed = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
        return ELPDData(
            data=list(known.values()), index=[renamed.get(name, name) for name in known]
        )


def good_khat(num_samples: int) -> float:
    """The k̂ up to which K draws are enough for a smoothed mean: min(1 − 1/log₁₀ K, 0.7) (Vehtari
    et al. 2024).
    """
    return min(max(0.0, 1.0 - 1.0 / log10(num_samples)) if num_samples > 1 else 0.0, 0.7)


def paired_differences(log_px: Mapping[str, NDArray[Any]]) -> dict[str, tuple[float, float]]:
    """Mean difference to the best and its paired standard error, nats an image, best first; by
    ``az.compare``.
    """
    table = _compare(log_px, "pseudo-BMA")
    number = len(next(iter(log_px.values())))
    # ArviZ's √(N · var) is of the sum, with N in the variance: per image, with N − 1
    to_mean = float("nan") if number == 1 else 1.0 / (number * (number - 1)) ** 0.5
    differences, errors = np.asarray(table["elpd_diff"], float), np.asarray(table["dse"], float)
    # 0.23 subtracts the model from the best, 1.x the best from the model
    return {
        str(name): (0.0 - abs(difference) / number, error * to_mean)
        for name, difference, error in zip(table.index, differences, errors, strict=True)
    }


def stacking_weights(log_px: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Weights of the mixture of models with the largest Σ log p(x_i) (Yao et al. 2018); by
    ``az.compare``.

    ArviZ exponentiates log p(x_i), which underflows below about −745: only differences matter, so
    that each image's largest is subtracted first.
    """
    best = np.max(list(log_px.values()), axis=0)
    table = _compare(
        {name: np.maximum(value - best, FAINTEST) for name, value in log_px.items()}, "stacking"
    )
    return {
        str(name): float(weight) for name, weight in zip(table.index, table["weight"], strict=True)
    }


def _compare(log_px: Mapping[str, NDArray[Any]], method: str) -> Any:
    unknown = np.full(len(next(iter(log_px.values()))), np.nan)
    results = {name: elpd_data(value, unknown, 1) for name, value in log_px.items()}
    with _quiet():
        if _is_one():
            from arviz_stats import compare

            return compare(results, method=method, round_to="none")
        from arviz import compare as compare_0

        return compare_0(results, ic="loo", method=method, scale="log")


# ------------------------------------------------------------------------------------------
# draws


def inference_data(groups: Mapping[str, xarray.Dataset], attributes: Mapping[str, Any]) -> Any:
    """Named groups as ``az.InferenceData`` (0.23) or ``xarray.DataTree`` (1.x); the attributes are
    its own and each group's.
    """
    import xarray

    named = {name: group.assign_attrs(attributes) for name, group in groups.items()}
    with _quiet():
        if _is_one():
            return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=dict(attributes)), **named})
        from arviz import InferenceData

        return InferenceData(attrs=dict(attributes), **named)


# ------------------------------------------------------------------------------------------


@cache
def _is_one() -> bool:
    """Whether ArviZ is 1.x."""
    return int(version("arviz").split(".")[0]) >= 1


@contextmanager
def _quiet() -> Iterator[None]:
    """ArviZ announces its next release, and ties of −inf, at every import and call."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
