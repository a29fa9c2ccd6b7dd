"""Random seeds: checked, mixed, and set for a part of the code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import UserError


def check_seed(seed: Any) -> None:
    """A whole number that Pyro, NumPy and torch all take as a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed!r}: expected a whole number from 0 to 2³² − 1")


def mix(seed: int, *others: int) -> int:
    """One seed out of several, different for every combination."""
    return int(
        np.random.SeedSequence([seed, *others]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def permutation(number: int, seed: int) -> Tensor:
    """Rows 0 … number − 1 in an order that the seed decides: the same one on every device."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed), device="cpu")


def set_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generator on the CPU and, where the device is another one, its own.

    ``torch.manual_seed`` seeds every device, a hundred times as slowly: where CUDA is not in use it
    notes down who has called.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def kept_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's random state, on the CPU and on this device, back at the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators, and give the caller's state back at the end."""
    with kept_randomness(device):
        set_generators(seed, device)
        yield
