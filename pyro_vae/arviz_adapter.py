"""All contact with ArviZ: release 0.23 (Python 3.11) and 1.x name the same things differently."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.accumulate import tail_length

CONSTANT = 1e-10
"""A relative variance of the mean weight below which all weights are one number, up to float32's rounding."""


def pareto_khat(top: NDArray[Any], num_samples: int, variance: NDArray[Any]) -> NDArray[Any]:
    """k̂ of the importance weights from their M + 1 largest alone: equal to ArviZ's on all K (Vehtari et al. 2024).

    Args:
        top: the largest log weights ``(M + 1, N)``.
        num_samples: K.
        variance: relative variance of the mean weight, ``(N,)``.

    Returns:
        ``(N,)``: −inf where the weights are constant, NaN where K is too small for a tail.
    """
    length = tail_length(num_samples)
    if length < 5:
        return np.full(top.shape[1], np.nan)
    # psislw takes the tail from the number of draws: pad with zero weights, and name the efficiency that gives M again
    padded = np.full((top.shape[1], min(num_samples, 5 * (length + 1))), -np.inf)
    padded[:, : len(top)] = np.where(np.isfinite(top), top, -np.inf).T
    khat = _psis_khat(padded, reff=9.0 * padded.shape[1] / (length - 0.5) ** 2)
    return np.where(variance < CONSTANT, -np.inf, np.where(np.isposinf(khat), np.nan, khat))


def _psis_khat(log_weights: NDArray[Any], reff: float) -> NDArray[Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # ArviZ announces its next release, and ties of −inf, at every import and call
        try:
            from arviz_stats.base import array_stats  # 1.x takes −log w
        except ImportError:
            from arviz import psislw

            return np.asarray(psislw(log_weights, reff=reff)[1])
        return np.asarray(array_stats.psislw(-log_weights, r_eff=reff, axis=-1)[1])
