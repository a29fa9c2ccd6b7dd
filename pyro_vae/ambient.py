"""Process-wide settings that change a number: autocast, matrix-product precision, one thread at a
time.

An evaluation sets autocast off and products to float32, and says in its protocol what it takes as
it is: the default dtype, deterministic mode, the number of threads. A training takes all of it as
it is, and notes what is unusual.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.errors import UserError

_backends: Any = torch.backends
SETTINGS: tuple[Any, ...] = (
    _backends,
    _backends.cudnn,  # of all of CUDA
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.rnn,
)
"""What has an ``fp32_precision``, the general before the particular. torch's older names for these
settings can't be read
where the new ones were set, so they are left alone: both set the same state."""

NOTED: dict[str, dict[str, Any]] = {
    "cpu": {"matmul": _backends.mkldnn.matmul, "conv": _backends.mkldnn.conv},
    "cuda": {"matmul": _backends.cuda.matmul},  # TF32 convolutions are torch's default there
}
"""Where the precision of products on a device is read."""

_turn = threading.RLock()


@contextmanager
def turn() -> Iterator[None]:
    """One thread at a time: Pyro's handlers, the checks of distributions and torch's random state
    are one per process.

    Raises:
        UserError: another thread has its turn. Waiting for it could last for ever, where that one
            waits for this.
    """
    if not _turn.acquire(blocking=False):
        raise UserError(
            "another thread of this process runs fit or an evaluation. Pyro's handlers and "
            "torch's random state are shared by the threads of a process: use processes, or "
            "one thread after the other"
        )
    try:
        yield
    finally:
        _turn.release()


@contextmanager
def exact(products: str = "ieee") -> Iterator[None]:
    """No autocast, and products of float32 numbers as named (``ieee`` or ``tf32``); the settings
    are put back on leaving.
    """
    with (
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        products_as(products),
    ):
        yield


@contextmanager
def products_as(precision: str) -> Iterator[None]:
    """Products of float32 numbers as named (``ieee`` or ``tf32``), and autocast as it is."""
    changed = []
    try:
        for each in SETTINGS:
            # one that follows the general setting has moved with it, and goes on following it
            if (before := each.fp32_precision) != precision:
                each.fp32_precision = precision
                changed.append((each, before))
        yield
    finally:
        for each, before in reversed(changed):
            each.fp32_precision = before


class BFloat16Products(TorchFunctionMode):
    """What torch's autocast computes in bfloat16, products of float32 numbers, goes on in float32:
    draws, densities and their sums.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's result."""
        found = func(*args, **(kwargs or {}))
        rounded = isinstance(found, Tensor) and found.dtype == torch.bfloat16
        return found.float() if rounded else found


@contextmanager
def products_rounded(kind: str) -> Iterator[None]:
    """Products in bfloat16 on this kind of device, and all else in float32."""
    with torch.autocast(kind, torch.bfloat16, cache_enabled=False), BFloat16Products():
        yield


def need_float32(precision: str, dtype: torch.dtype | None) -> None:
    """Raise a ``UserError`` where parameters of this dtype have no products to be rounded."""
    if dtype not in (None, torch.float32):
        raise UserError(
            f"precision={precision!r} rounds float32 products, but these parameters are "
            f"{_name(dtype)}: call .float() on model and guide, or leave precision out"
        )


@contextmanager
def casts_anew() -> Iterator[None]:
    """Autocast, where it is on, casts a parameter at each use: the copies that it keeps don't
    follow the optimiser.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def said(place: torch.device) -> dict[str, Any]:
    """For the protocol of an evaluation on this device: what it takes as it is."""
    return {**({"threads": torch.get_num_threads()} if place.type == "cpu" else {}), **_modes()}


def unusual(place: torch.device) -> list[str]:
    """What a training on this device takes as it is, and is not torch's default; a phrase each."""
    found = []
    if torch.is_autocast_enabled(place.type):
        found.append(f"autocast {_name(torch.get_autocast_dtype(place.type))}")
    for products, where in NOTED.get(place.type, {}).items():
        if (setting := where.fp32_precision) not in ("none", "ieee"):
            found.append(f"{products} precision {setting}")
    return found + [f"{name.replace('_', ' ')} {value}" for name, value in _modes().items()]


def _modes() -> dict[str, str]:
    """The default dtype and deterministic mode, where they are not torch's own."""
    modes = {}
    if (dtype := torch.get_default_dtype()) != torch.float32:
        modes["default_dtype"] = _name(dtype)
    if torch.are_deterministic_algorithms_enabled():
        modes["deterministic"] = (
            "warn only" if torch.is_deterministic_algorithms_warn_only_enabled() else "on"
        )
    return modes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
