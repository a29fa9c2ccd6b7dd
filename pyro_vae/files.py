"""Atomic file writes: a reader finds the old file or the new one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a new file, flush it to the disk, and rename it to ``path``."""
    write_in_order({path: content})


class CantWrite(OSError):
    """A file of ours can't be written; ``filename`` says which."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error inside is one of writing this file."""
    try:
        yield
    except OSError as error:
        raise CantWrite(error.errno, error.strerror or str(error), str(path)) from error


def write_in_order(contents: Mapping[Path, bytes]) -> None:
    """Write several files next to their places; once all are on the disk, put each in its place, in
    this order.

    Raises:
        CantWrite: one of them can't be written; those before it in the order may be.
    """
    scratch = {path.with_name(f".{path.name}.{os.getpid()}.tmp"): path for path in contents}
    try:
        for beside, path in scratch.items():
            with writing(path), open(beside, "wb") as file:
                file.write(contents[path])
                file.flush()
                _sync(file.fileno())
        for beside, path in scratch.items():
            with writing(path):
                os.replace(beside, path)
                sync_folder(path.parent)
    except BaseException:
        for beside in scratch:
            with suppress(OSError):  # the first error is the one to tell
                beside.unlink(missing_ok=True)
        raise


def set_aside(*paths: Path, why: str = "superseded") -> None:
    """Rename files together to ``NAME.why``, or ``NAME.why-2`` and so on: kept, and no longer taken
    for what they were.
    """
    endings = (f".{why}" if number == 1 else f".{why}-{number}" for number in count(1))
    free = next(
        end for end in endings if not any(os.path.lexists(f"{path}{end}") for path in paths)
    )
    for path in paths:
        if os.path.lexists(path):
            os.rename(path, f"{path}{free}")


_SCRATCH = re.compile(
    r"\..+\.(?:csv|jsonl?|npz|png|pt|py|sha256|toml|holder)(?:\.(\d+))?\.tmp"
)  # of the files of a run alone


def is_scratch(path: Path) -> bool:
    """Whether it is called as what a process left half written that is gone."""
    found = _SCRATCH.fullmatch(path.name)
    return bool(found and not (found[1] and _is_running(int(found[1]))))


def sweep(folder: Path) -> None:
    """Remove what `write_atomically` left in the folder when its process was killed; a living
    process keeps its own.
    """
    with suppress(
        OSError
    ):  # a folder that is not there, or not ours to change: nothing depends on it
        for path in folder.iterdir():
            found = _SCRATCH.fullmatch(path.name)
            if found and found[1] and not _is_running(int(found[1])):
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the folder's entries to the disk, without which a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that have no fsync (some FUSE and SMB mounts, for folders)."""


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _is_running(pid: int) -> bool:
    if pid == os.getpid():  # a former process of that number: this one has not begun to write
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
