"""One process trains in a run's folder at a time: a lock that the system releases when its holder
dies.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.errors import UserError
from pyro_vae.files import write_atomically

LOCK, HOLDER = ".run.lock", ".run.holder"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder's lock inside.

    Raises:
        UserError: another process holds it; its number and host are named.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(in_use(folder)) from error
    try:
        # beside the lock, as opening the lock's own file may empty it
        write_atomically(
            folder / HOLDER, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode()
        )
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a living process trains there."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        with lock:
            return False
    except (Timeout, OSError):
        return True


def in_use(folder: Path) -> str:
    """Who holds the lock, and what to do."""
    who = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who = f"process {int(held['pid'])} on {str(held['host'])[:100]}"
    return f"{folder} is in use by {who}: wait until it is done, or stop it"
