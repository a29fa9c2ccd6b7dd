"""The lock of a run folder: one process trains in it at a time."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.errors import UserError
from pyro_vae.files import write_atomically
from pyro_vae.signals import Failure

LOCK, HOLDER = ".run.lock", ".run.holder"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Inside: this process has the folder's lock.

    Raises:
        UserError: another process has it; its number and host are named.
    """
    try:
        _held[folder] = _Held.of(folder)
    except Timeout as error:
        raise UserError(in_use(folder)) from error
    try:
        yield
    finally:
        held = _held.pop(folder)
        if held.file == _file_of(folder):  # else the name is another process's
            with suppress(OSError):
                (folder / HOLDER).unlink(missing_ok=True)
        for lock in held.locks:
            lock.release()


def keep(folder: Path) -> None:
    """Make sure, before something is written, that the lock is still this process's: its file may
    have been removed.

    Raises:
        Failure: another process has it now.
    """
    while (held := _held.get(folder)) is not None and held.file != _file_of(folder):
        try:
            again = _Held.of(folder)
        except Timeout as error:
            raise Failure(
                f"the lock of {folder} was removed, and {_holder(folder)} trains there now: this "
                "process stops and writes nothing more"
            ) from error
        _held[folder] = _Held((*held.locks, *again.locks), again.file)


@dataclass(frozen=True)
class _Held:
    """Locks of this process on one folder, and the file that the last one is on."""

    locks: tuple[FileLock, ...]
    file: tuple[int, int] | None

    @staticmethod
    def of(folder: Path) -> _Held:
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
        # the file that is locked, which need not have the name any more
        descriptor = lock._context.lock_file_fd
        assert descriptor is not None
        found = os.fstat(descriptor)
        file = found.st_dev, found.st_ino
        if file == _file_of(folder):
            # next to the lock, as opening the lock's own file may empty it
            holder = json.dumps({"pid": os.getpid(), "host": platform.node()})
            write_atomically(folder / HOLDER, holder.encode())
        return _Held((lock,), file)


_held: dict[Path, _Held] = {}


def _file_of(folder: Path) -> tuple[int, int] | None:
    """Which file the lock's name is: a lock is on the file, not on its name."""
    try:
        found = os.stat(folder / LOCK)
    except OSError:
        return None
    return found.st_dev, found.st_ino


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
    """Who has the lock, and what to do."""
    return f"{folder} is in use by {_holder(folder)}: wait until it is done, or stop it"


def _holder(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(held['pid'])} on {str(held['host'])[:100]}"
    return "another process"
