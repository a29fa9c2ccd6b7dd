"""Progress bars."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SCREEN, LOG = 0.1, 20.0
"""Seconds between two states of a bar."""


def progress_bar(total: int, unit: str, shown: bool, initial: int = 0) -> Any:
    """A bar on stderr, which is no screen where it is a file or a pipe: there each state would
    stay.
    """
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    seconds = SCREEN if sys.stderr.isatty() or in_notebook else LOG
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        disable=not shown,
        dynamic_ncols=True,
        mininterval=seconds,
        maxinterval=max(seconds, 10.0),
    )
