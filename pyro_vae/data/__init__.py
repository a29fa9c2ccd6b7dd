"""Data sets: stored files → images (rows) → batches.

`load` reads a data set; `observe` turns its images into what a model sees, such as binary pixels.
Both are imported at first use, as the names of `pyro_vae` are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "ImageData": "datasets",
    "load": "datasets",
    "Observed": "transforms",
    "observe": "transforms",
}

__all__ = ["ImageData", "Observed", "load", "observe"]

if TYPE_CHECKING:
    from pyro_vae.data.datasets import ImageData, load
    from pyro_vae.data.transforms import Observed, observe


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
