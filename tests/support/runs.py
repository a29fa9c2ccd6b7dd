"""Two run folders held against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pyro_vae.training import checkpoint_files


def final(run: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The last checkpoint, and the metrics without the clock."""
    held = checkpoint_files.newest(run / "checkpoints").held
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return held, [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def equal(a: Any, b: Any) -> bool:
    """The same structure with the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(p, q) for p, q in zip(a, b, strict=True))
    return bool(a == b)


def assert_same_end(run: Path, other: Path) -> None:
    """Parameters, optimiser, random numbers, position, early stopping's best and metrics: bit for
    bit.
    """
    (held, rows), (expected, expected_rows) = final(run), final(other)
    assert rows == expected_rows and len({row["epoch"] for row in rows}) == len(rows)
    for section in ("model", "guide", "optimizer", "random"):
        assert equal(held.sections[section], expected.sections[section]), section
    for part in ("position", "settings", "callbacks"):
        ours, theirs = held.sections["training"][part], expected.sections["training"][part]
        if part == "callbacks":  # the rows have the clock in them
            for each in (*ours, *theirs):
                each[1].pop("rows", None)
        assert equal(ours, theirs), part
