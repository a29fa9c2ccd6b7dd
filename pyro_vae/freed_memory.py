"""Freed memory kept for the next tensor: what glibc gives back to the system, the next step or
chunk asks for again.
"""

from __future__ import annotations

import torch

_LARGEST = 31 * 2**20  # below DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB


def keep_freed_memory() -> None:
    """Let glibc's allocator hold on to blocks of up to 31 MiB (mallopt(3): its thresholds rise when
    such a block is freed).

    The block is never written to, so that this costs no memory. Without it temporaries are cleared
    pages each time: a replayed evaluation takes up to twice as long, a step of a conv net a seventh
    longer (replayed: a quarter). Other allocators are left as they are.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
