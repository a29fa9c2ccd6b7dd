"""A piece of work that may end its own process."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def square(piece: tuple[int, str, str]) -> int:
    """number²; ``kill`` ends the process, ``kill once`` the first time alone, ``raise`` is an
    error.

    Args:
        piece: the number, what happens, and a file that remembers that it has happened.
    """
    number, what, flag = piece
    if what == "kill" or (what == "kill once" and not Path(flag).exists()):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise ValueError(f"piece {number}")
    return number * number
