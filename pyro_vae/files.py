"""Writing a file so that a reader, or a crash, finds it whole: the old one or the new one."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, force it to the disk, and put it in the place of ``path``."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


_SCRATCH = re.compile(r"\..+\.(\d+)\.tmp")


def sweep(folder: Path) -> None:
    """Remove what `write_atomically` left in the folder when its process was killed; a living process keeps its own."""
    with suppress(OSError):  # a folder that is not there, or not ours to change: nothing depends on it
        for path in folder.iterdir():
            found = _SCRATCH.fullmatch(path.name)
            if found and not _is_running(int(found[1])):
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the folder's entries to the disk, without which a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
