"""Memory: how much is available, out-of-memory errors, and freeing what torch keeps."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from pyro_vae.errors import UserError

OF_A_GROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit is."""

WORDS = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
"""What allocators say, in lower case: torch's, the system's, CUDA's and its libraries'."""


def limit() -> int:
    """Bytes that this process could have at the most: the machine's, its container's or its own
    limit.
    """
    found = [sys.maxsize]
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for place in OF_A_GROUP:
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(place).read_text()))
    with suppress(ImportError, ValueError, OSError):
        import resource

        found += [n for n in resource.getrlimit(resource.RLIMIT_AS) if n > 0]
    return min(each for each in found if each > 0)


def refuse_beyond(num_bytes: float, what: str, advice: str) -> None:
    """A ``UserError`` if so many bytes can't be had, before the work is begun."""
    if num_bytes > (most := limit()):
        raise UserError(
            f"{what} takes {in_words(num_bytes)}, and there are {in_words(most)}: {advice}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """An allocator's error, CUDA's or the CPU's."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in WORDS)


def in_words(num_bytes: float) -> str:
    """``3.2 GB``, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.{0 if unit == 'bytes' else 1}f} {unit}"
        num_bytes /= 1000
    raise AssertionError("TB is the last")


_LARGEST = 31 * 2**20  # below DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB


def keep_freed_memory() -> None:
    """Let glibc's allocator keep blocks of up to 31 MiB (mallopt(3): its thresholds rise when
    such a block is freed).

    The block is never written to, so that this costs no memory. Without it temporaries are cleared
    pages each time: a replayed evaluation takes up to twice as long, a step of a conv net a seventh
    longer (replayed: a quarter). Other allocators are left as they are.
    """
    import torch

    torch.empty(_LARGEST, dtype=torch.uint8)
