"""Sparse updates of tables with a row for each image: rows of absent images do not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_MARK = "_row_of_each_image"


def mark_rows(table: nn.Parameter) -> None:
    """Say that row n of ``table`` belongs to image n alone. A copy of a module forgets it: mark at
    each use.
    """
    setattr(table, _MARK, True)


def tables_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The marked tables among its parameters, for which no kernel may replace
    ``optimizer.step()``.
    """
    return [
        p for group in optimizer.param_groups for p in group["params"] if getattr(p, _MARK, False)
    ]


def hold_absent_rows(optimizer: torch.optim.Optimizer) -> None:
    """Undo, in each step, what ``optimizer`` does to rows of a marked table whose gradient is zero.

    Momentum, and Adam's averages, would move them by gradients of past batches. Their state is kept
    as well, so that a row has the averages of its own visits (as in ``torch.optim.SparseAdam``,
    here for every optimiser).
    """
    tables = tables_of(optimizer)
    if not tables:
        return
    before: list[tuple[Tensor, Tensor, Tensor]] = []  # tensor, its copy, which rows to restore

    def remember(*_: Any) -> None:
        before.clear()
        for table in tables:
            if table.grad is not None:
                absent = (table.grad == 0).flatten(1).all(1).view(-1, *[1] * (table.dim() - 1))
                before.extend(
                    (tensor, tensor.detach().clone(), absent) for tensor in _held(table, optimizer)
                )

    def restore(*_: Any) -> None:
        with torch.no_grad():
            for tensor, copy, absent in before:
                tensor.copy_(torch.where(absent, copy, tensor))
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(restore)


def _held(table: nn.Parameter, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The table, and the optimiser's state that has its shape."""
    yield table
    yield from (
        s
        for s in optimizer.state[table].values()
        if isinstance(s, Tensor) and s.shape == table.shape
    )
