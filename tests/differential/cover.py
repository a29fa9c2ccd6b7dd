"""How programs are trained: optimisers, tiers, clipping and objectives, each two of them together
in one of few rows.
"""

from __future__ import annotations

from typing import Any

from tests.support.grids import pairwise_cover

OPTIMIZERS = (
    "Adam",
    "AdamW",
    "SGD",
    "SGD(momentum=0.9)",
    "Adagrad",
    "RMSprop",
    "AdamW(weight_decay=0.1)",
)
FACTORS: dict[str, tuple[Any, ...]] = {
    "optimizer": OPTIMIZERS,
    "by": ("name", "factory", "fused factory"),
    "compile": ("auto", "off", "graph"),
    "grad_clip": (None, 0.3),
    "objective": ("Trace_ELBO", "TraceMeanField_ELBO"),
}
RATES = {"Adam": 0.02, "AdamW": 0.02, "SGD": 0.02, "Adagrad": 0.1, "RMSprop": 0.01}


COVER = pairwise_cover(FACTORS)
