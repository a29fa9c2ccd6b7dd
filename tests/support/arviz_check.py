"""ArviZ's own k̂ of whole samples, and its fit: the independent figures that ours must equal."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

ONE = not version("arviz").startswith("0.")
"""Whether ArviZ is 1.x (Python ≥ 3.12), which names things differently."""


def khat_of_all(log_weights: NDArray[Any]) -> NDArray[Any]:
    """k̂ of each row's K log weights; 1.x takes −log w."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ONE:
            from arviz_stats.base import array_stats

            return np.asarray(array_stats.psislw(-log_weights, axis=-1)[1])
        from arviz import psislw

        return np.asarray(psislw(log_weights)[1])


def shape_of(excess: NDArray[Any]) -> float:
    """The shape of the generalised Pareto distribution of ascending excesses, by ArviZ's private
    fit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ONE:
            from arviz_stats.base import array_stats

            return float(array_stats._gpdfit(excess)[0])
        from arviz.stats.stats import _gpdfit

        return float(_gpdfit(excess)[0])
