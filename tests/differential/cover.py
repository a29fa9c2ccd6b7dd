"""How programs are trained: optimisers, tiers, clipping and objectives, each two of them together
in one of few rows.
"""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

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


def pairwise_cover(factors: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rows such that each two values of two factors meet in one of them (greedy)."""
    names, chance = list(factors), random.Random(0)
    pairs = [(a, b) for a in names for b in names if a < b]
    left = {(a, u, b, w) for a, b in pairs for u in factors[a] for w in factors[b]}
    rows = []
    while left:
        tries = [{name: chance.choice(factors[name]) for name in names} for _ in range(60)]
        seed = chance.choice(sorted(left, key=repr))
        for row in tries:
            row.update({seed[0]: seed[1], seed[2]: seed[3]})
        rows.append(max(tries, key=lambda row: len(met(row) & left)))
        left -= met(rows[-1])
    return rows


def met(row: dict[str, Any]) -> set[tuple[Any, ...]]:
    """The pairs of values in a row."""
    return {(a, row[a], b, row[b]) for a, b in combinations(sorted(row), 2)}


COVER = pairwise_cover(FACTORS)
