"""What is given as data becomes tensors: images, floating-point numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError


def as_images(data: Any, what: str = "x") -> Tensor:
    """``data`` as a tensor of images ``(N, *event_shape)``; a ``UserError`` for what can't be one
    (NaN: which image).
    """
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "biuf":
            raise UserError(f"{what} is an array of dtype {data.dtype}: expected numbers")
        data = torch.from_numpy(np.ascontiguousarray(data))
    if not isinstance(data, Tensor):
        raise UserError(
            f"{what} is a {type(data).__name__}: expected a tensor or array (N, *event_shape), a "
            "Dataset or a DataLoader"
        )
    if data.is_complex():
        raise UserError(f"{what} is complex: expected real numbers")
    if data.dim() < 2:
        raise UserError(
            f"{what} has shape {tuple(data.shape)}: expected (N, *event_shape), one row an image"
        )
    if not len(data):
        raise UserError(
            f"{what} is empty, of shape {tuple(data.shape)}: expected at least one image"
        )
    if data.is_floating_point() and not bool(torch.isfinite(data).all()):
        image = int((~torch.isfinite(data.flatten(1))).any(1).nonzero()[0])
        raise UserError(
            f"{what}: image {image} holds a NaN or an infinite pixel: repair it or leave it out"
        )
    return data.detach().contiguous()  # a traced program is one for these strides


def as_float(x: Tensor) -> Tensor:
    """Integer pixels as float32, floats as they are."""
    return x if x.is_floating_point() else x.float()


@contextmanager
def own_buffers(buffers: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Give the modules clones of these buffers, which the function may change, and put the
    originals back.
    """
    originals = [module._buffers[name] for module, name in buffers]
    clones: dict[int, Tensor] = {}
    for (module, name), original in zip(buffers, originals, strict=True):
        assert original is not None
        module._buffers[name] = clones.setdefault(id(original), original.clone())
    try:
        yield
    finally:
        for (module, name), original in zip(buffers, originals, strict=True):
            module._buffers[name] = original


@contextmanager
def attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Numbers and tensors that modules keep as plain attributes (a counter, a moving average) are
    put back on leaving.
    """
    kept = [
        (module, name, value, value.clone() if isinstance(value, Tensor) else None)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | Tensor) and name != "training"
    ]
    try:
        yield
    finally:
        for module, name, value, content in kept:
            if name not in vars(module):
                # it has become a parameter or a buffer, which an attribute of that name would hide
                continue
            if (
                isinstance(value, Tensor)
                and content is not None
                and not torch.equal(value, content)
            ):
                value.data.copy_(content)
            vars(module)[name] = value
