"""Provenance of an evaluation: date, duration, versions."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyro_vae

SECONDS = 5
"""After which git is not waited for."""


def provenance(seconds: float) -> dict[str, Any]:
    """``time`` (ISO 8601, UTC), ``seconds``, ``version`` of this package; ``commit`` that is
    checked out in the current folder, or None.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "version": pyro_vae.__version__,
        "commit": commit(Path.cwd()),
    }


@cache
def commit(folder: Path) -> str | None:
    """The commit that is checked out there. Nothing but its name is asked for: a repository's own
    configuration can make `git status` run programs.
    """
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip()
    return None
