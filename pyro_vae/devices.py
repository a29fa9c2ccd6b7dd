"""Devices by name, and their memory."""

from __future__ import annotations

import torch

from pyro_vae.errors import UserError


def find_device(name: str | torch.device) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``; a ``UserError`` where it
    isn't there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device {str(name)!r} was asked for, but torch finds no CUDA device here: use cpu or auto"
        )
    if (
        device.type == "cuda"
        and device.index is not None
        and device.index >= torch.cuda.device_count()
    ):
        raise UserError(
            f"device {str(name)!r} was asked for, but there are only {torch.cuda.device_count()} CUDA "
            "devices here"
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=device).tolist()
        except (RuntimeError, NotImplementedError, AssertionError):
            raise UserError(
                f"device {str(name)!r} was asked for, but torch can't use it here: use cpu or auto"
            ) from None
    return device


MEMORY_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What allocators say that has no error class of its own: the CPU's, and CUDA's libraries'."""


def is_out_of_memory(error: BaseException) -> bool:
    """An allocator's error, CUDA's or the CPU's."""
    said = any(words in str(error) for words in MEMORY_WORDS)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


_LARGEST = 31 * 2**20  # below DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB


def keep_freed_memory() -> None:
    """Let glibc's allocator hold on to blocks of up to 31 MiB (mallopt(3): its thresholds rise when
    such a block is freed).

    The block is never written to, so that this costs no memory. Without it temporaries are cleared
    pages each time: a replayed evaluation takes up to twice as long, a step of a conv net a seventh
    longer (replayed: a quarter). Other allocators are left as they are.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
