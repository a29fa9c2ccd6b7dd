"""Freed memory kept for the next tensor: what glibc gives back to the system, a replayed graph asks for again at every node."""

from __future__ import annotations

import torch

_LARGEST = 31 * 2**20  # below DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB


def keep_freed_memory() -> None:
    """Let glibc's allocator hold on to blocks of up to 31 MiB (mallopt(3): its thresholds rise when such a block is freed).

    The block is never written to, so that this costs no memory. Without it the temporaries of a replayed evaluation are
    cleared pages at each chunk of draws, and it takes up to twice as long; other allocators are left as they are.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
