"""ArviZ's own k̂ of whole samples: the independent figure that ours, from the tail alone, must equal."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


def khat_of_all(log_weights: NDArray[Any]) -> NDArray[Any]:
    """k̂ of each row's K log weights, by ArviZ 0.23 or 1.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from arviz_stats.base import array_stats
        except ImportError:
            from arviz import psislw

            return np.asarray(psislw(log_weights)[1])
        return np.asarray(array_stats.psislw(-log_weights, axis=-1)[1])
