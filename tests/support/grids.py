"""Grids of a test's arguments with fewer rows than the product of their values."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import pytest


def pairwise_cover(factors: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
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


def pairwise(*choices: Iterable[Any]) -> list[tuple[Any, ...]]:
    """`pairwise_cover` of arguments by their place; their values need not be hashable."""
    values = [list(each) for each in choices]
    factors = {f"{place:02}": tuple(range(len(each))) for place, each in enumerate(values)}
    rows = pairwise_cover(factors)
    return [tuple(v[row[name]] for v, name in zip(values, factors, strict=True)) for row in rows]


def thinned(*choices: Iterable[Any]) -> list[Any]:
    """As many everyday rows as the longest argument has values, each value of each in one of them;
    the other rows of `pairwise` are slow.
    """
    values = [list(each) for each in choices]
    places = [range(len(each)) for each in values]
    longest = max(map(len, values))
    everyday = [tuple(row % len(each) for each in values) for row in range(longest)]
    slow = [row for row in pairwise(*places) if row not in everyday]
    return [
        pytest.param(*found, id="-".join(map(word, found)), marks=marks)
        for rows, marks in ((everyday, ()), (slow, pytest.mark.slow))
        for row in rows
        for found in [[each[place] for each, place in zip(values, row, strict=True)]]
    ]


def word(value: Any) -> str:
    """A value in a test's name."""
    return str(getattr(value, "__name__", value))
