"""Arrays of images and labels: checked, made tensors, and split at random."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.rng import permutation
from pyro_vae.tensors import one_of

CHANNELS = (1, 3, 4)
"""Numbers of channels by which the channel axis of a four-dimensional array is recognised."""


def random_rows(
    number: int, fraction: float, seed: int, what: str, least: int = 1, one: str = "image"
) -> tuple[Tensor, Tensor]:
    """Rows 0 … number − 1 divided at random, both parts sorted; `least` rows at least stay in the
    first.
    """
    if not 0 < fraction < 1:
        raise UserError(f"{what} {fraction}: expected a number between 0 and 1, such as 0.1")
    if number < least + 1:
        raise UserError(
            f"{what} {fraction}: {number} {one}(s) cannot be divided; give at least {least + 1}"
        )
    held_out = min(max(1, round(fraction * number)), number - least)
    order = permutation(number, seed)
    return order[held_out:].sort().values, order[:held_out].sort().values


def checked_pixels(
    name: str, arrays: Mapping[str, NDArray[Any]], levels: int | None, missing: bool = False
) -> tuple[dict[str, Tensor], int | None]:
    """The arrays as tensors (N, C, H, W) or (N, D) of uint8 or float32, checked; and their number
    of levels. Where entries may be ``missing``, which a NaN marks, the others may be levels too.
    """
    kinds = {key: _kind(f"{name}, array {key!r}", array) for key, array in arrays.items()}
    if missing and are_levels(*arrays.values()):
        kinds = dict.fromkeys(kinds, "integer")
    if len(set(kinds.values())) > 1:
        found = " and ".join(f"{key} is {array.dtype}" for key, array in arrays.items())
        raise UserError(f"{name}: {found}; store both as 8-bit integers, or both as floats")
    pixels = {
        key: _checked(f"{name}, array {key!r}", array, missing) for key, array in arrays.items()
    }
    if "float" in kinds.values():
        return pixels, None
    largest = max(int(value.nan_to_num().max()) for value in pixels.values())
    if levels is None:
        levels = 2 if largest <= 1 else 256
    if largest >= levels:
        raise UserError(
            f"{name}: level {largest} found where levels 0 to {levels - 1} are expected"
        )
    return pixels, levels


def _kind(where: str, array: NDArray[Any]) -> str:
    """`binary`, `integer` or `float`, by the dtype."""
    kinds = {"b": "binary", "u": "integer", "i": "integer", "f": "float"}
    if array.dtype.kind not in kinds:
        raise UserError(
            f"{where}: dtype {array.dtype} is no type of images; expected uint8, or floats"
        )
    return kinds[array.dtype.kind]


def are_levels(*arrays: NDArray[Any]) -> bool:
    """Whether these are whole numbers 0 … 255, which are floats for the sake of NaN alone."""
    if not any(array.dtype.kind == "f" and np.isnan(array).any() for array in arrays):
        return False
    levels = [(array == np.floor(array)) & (array >= 0) & (array <= 255) for array in arrays]
    pairs = zip(arrays, levels, strict=True)
    return all((whole | (array != array)).all() for array, whole in pairs)


def _checked(where: str, array: NDArray[Any], missing: bool) -> Tensor:
    """One array as a tensor (N, C, H, W) or (N, D), uint8 or float32; every value is checked."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise UserError(
            f"{where}: shape {array.shape}; expected (N, H, W), (N, C, H, W), (N, H, W, C) or (N, "
            "D), none of them 0"
        )
    if array.dtype.kind in "ui" and (array.min() < 0 or array.max() > 255):
        index, value = _first(array, (array < 0) | (array > 255))
        raise UserError(
            f"{where}: {one_of(array)} {index} has the value {value}; whole numbers are grey "
            "levels 0 to 255. Store other numbers as floats"
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = array.astype(np.float32, copy=False)
        wrong = np.isinf(values) if missing else ~np.isfinite(values)
        if wrong.any():
            index, value = _first(array, wrong)
            raise UserError(
                f"{where}: "
                f"{one_of(array)} "
                f"{index} has "
                f"{value}; "
                "expected a "
                "finite float32: "
                "remove or repair "
                "it" + "; --missing nan if it is missing" * bool(np.isnan(value))
            )
    else:
        values = array.astype(np.uint8, copy=False)
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in CHANNELS and values.shape[1] not in CHANNELS:
        values = values.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _first(array: NDArray[Any], wrong: NDArray[np.bool_]) -> tuple[int, Any]:
    """The image and the value of the first wrong entry."""
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return int(position[0]), array[position].item()
