"""Conversion of data to tensors: images, floating-point numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import UserError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
A_SET = "expected a tensor or array (N, *event_shape), a Dataset or a DataLoader"
A_FIELD = (
    "expected a tensor or array of numbers with one row for each image (classes as whole "
    "numbers from 0)"
)


def as_tensor(value: Any, what: str, expected: str = A_SET) -> Tensor:
    """An array or tensor of numbers as a dense tensor that torch's functions serve.

    Raises:
        UserError: it is something else; the line names what was found and how to convert it.
    """
    if isinstance(value, np.ndarray):
        value = _from_array(value, what, expected)
    if not isinstance(value, Tensor):
        raise UserError(f"{what} is a {type(value).__name__}: {expected}{_advice(value)}")
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise UserError(f"{what} is sparse ({layout}): give {what}.to_dense()")
    if value.is_nested or value.is_meta or value.is_quantized:
        kind = (
            "nested" if value.is_nested else "on the meta device" if value.is_meta else "quantized"
        )
        raise UserError(
            f"{what} is a tensor that is {kind}: expected plain numbers, such as float32"
        )
    if value.is_complex():
        raise UserError(f"{what} is complex: expected real numbers")
    if value.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return value.to(torch.int64)  # torch has few functions for these
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise UserError(f"{what} is of dtype {value.dtype}: give {what}.to(torch.float32)")
    return value


def _from_array(array: NDArray[Any], what: str, expected: str) -> Tensor:
    """In the machine's own byte order, and writable, as torch wants it."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{what} is an array of dtype {array.dtype}: {expected}")
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise UserError(
            f"{what} is an array with masked entries: fill them, or leave these rows out"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise UserError(f"{what} is of dtype {array.dtype}: give {what}.astype('float64')")
    native = np.asarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def _advice(value: Any) -> str:
    """How to make numbers of it, where it has a way."""
    for method, call in (
        ("to_numpy", '.to_numpy(dtype="float32")'),  # pandas, polars, xarray
        ("toarray", ".toarray()"),  # scipy.sparse
        ("__array__", "numpy.asarray"),
    ):
        if hasattr(value, method):
            return f"; give its {call}"
    return ""


def as_images(data: Any, what: str = "x", *, missing: bool = False) -> Tensor:
    """``data`` as a tensor of images ``(N, *event_shape)``; a ``UserError`` for what can't be one
    (NaN: which image).

    Args:
        missing: whether a NaN may mark what is missing, for programs that leave it out.
    """
    data = as_tensor(data, what)
    if data.dim() < 2:
        raise UserError(
            f"{what} has shape {tuple(data.shape)}: expected (N, *event_shape), one row for "
            "each image"
        )
    if not len(data):
        raise UserError(
            f"{what} is empty, of shape {tuple(data.shape)}: expected at least one image"
        )
    bad = torch.isinf if missing else lambda x: ~torch.isfinite(x)
    if data.is_floating_point() and bool(bad(data).any()):
        image = int(bad(data.flatten(1)).any(1).nonzero()[0])
        raise UserError(
            f"{what}: {one_of(data)} {image} has a NaN or an infinite value: repair it or "
            "leave it out"
        )
    return data.detach().contiguous()  # a traced program is one for these strides


def one_of(data: Any) -> str:
    """What an entry of an array is called in a message: a row of a table, or an image."""
    return "row" if data.ndim == 2 else "image"


def marked(x: Any, mask: Any) -> Tensor:
    """The images ``x`` with NaN where ``mask`` is False; whole numbers become floats."""
    images = as_tensor(x, "x")
    return as_float(images).masked_fill(~as_mask(mask, images, "mask"), torch.nan)


def as_mask(mask: Any, images: Tensor, what: str) -> Tensor:
    """The mask, one bool for each entry of the images.

    Raises:
        UserError: it is of another type or shape.
    """
    found = torch.as_tensor(mask)
    if found.dtype != torch.bool:
        raise UserError(f"{what} has {found.dtype}: expected bool, one for each pixel of x")
    try:
        return found.to(images.device).broadcast_to(images.shape)
    except RuntimeError:
        raise UserError(
            f"{what} has shape {tuple(found.shape)}: expected that of x, {tuple(images.shape)}, "
            "or one that broadcasts to it"
        ) from None


def slices(number: int, size: int) -> list[slice]:
    """Rows 0 … number − 1 in parts of ``size``, the last one of what is left."""
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


def as_float(x: Tensor) -> Tensor:
    """Integer pixels as float32, floats as they are."""
    return x if x.is_floating_point() else x.float()
