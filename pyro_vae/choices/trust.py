"""The list of trusted Python files: those that this user has trained with, by SHA-256.

A run's folder looks like data and may carry code. What is run of it is what this user ran before,
or what is trusted by name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_here: set[str] = set()
"""Those of this process: where no folder can be written, they are known as long as it lives."""


def digest_of(contents: Iterable[bytes]) -> str:
    """One SHA-256 of several files' contents, in their order."""
    each = [hashlib.sha256(content).hexdigest() for content in contents]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def folder() -> Path | None:
    """``$XDG_STATE_HOME/pyro_vae/trusted`` (``~/.local/state``); None without a home."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "pyro_vae" / "trusted"
    with suppress(RuntimeError):
        return Path.home() / ".local" / "state" / "pyro_vae" / "trusted"
    return None


def note(digest: str, name: str) -> None:
    """From now on it is known; where it can't be written down, to this process alone."""
    _here.add(digest)
    place = folder()
    if place is None:
        return
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        (place / digest).write_text(f"{name}\n", encoding="utf-8", errors="replace")


def is_known(digest: str) -> bool:
    """Whether this user has trained with it, or trusted it."""
    if digest in _here:
        return True
    place = folder()
    with suppress(OSError):
        return place is not None and (place / digest).is_file()
    return False
