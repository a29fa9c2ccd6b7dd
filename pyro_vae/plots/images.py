"""Images as arrays of pixels, and many of them as one array."""

from __future__ import annotations

from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import UserError

Pixels = NDArray[np.float32]


class DoesNotFit(UserError):
    """There is no such picture of this run; the sentence says why."""


def picture_shape(event_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """``(channels, height, width)`` of an image: ``(C, H, W)`` with 1 or 3 channels, ``(H, W)``, or
    a flat square.

    Raises:
        DoesNotFit: any other shape.
    """
    shape = tuple(event_shape)
    if len(shape) == 1 and isqrt(shape[0]) ** 2 == shape[0]:
        return 1, isqrt(shape[0]), isqrt(shape[0])
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[0], shape[1], shape[2]
    raise DoesNotFit(
        f"data of shape {shape} are no images: expected 1 or 3 channels, or a flat square"
    )


def value_range(x: Tensor) -> tuple[float, float]:
    """The values shown as black and white: 0 and 1 for data in [0, 1], else the data's own
    extremes.
    """
    known = x[~x.isnan()]
    low, high = float(known.min()), float(known.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def to_pixels(x: Tensor, values: tuple[float, float] = (0.0, 1.0)) -> Pixels:
    """Images ``(N, *event_shape)`` as ``(N, H, W, C)`` in [0, 1]; values beyond the range are
    clipped to it, and what is missing is grey.
    """
    low, high = values
    scaled = ((x.detach().cpu().float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    scaled = scaled.nan_to_num(0.5)  # missing: grey
    return scaled.reshape(len(x), *picture_shape(x.shape[1:])).permute(0, 2, 3, 1).numpy()


def rgb(pixels: Pixels) -> NDArray[np.uint8]:
    """``(H, W, 1 or 3)`` in [0, 1] as ``(H, W, 3)`` bytes: no colour map between."""
    levels: NDArray[np.uint8] = np.rint(pixels * 255).astype(np.uint8)
    return levels.repeat(3 // pixels.shape[2], axis=2)


def tile(
    images: Pixels, columns: int, gap: int = 1, row_gap: int | None = None, background: float = 1.0
) -> Pixels:
    """One array ``(H', W', C)`` of the images ``(N, H, W, C)``: image i in row i // columns, column
    i % columns.

    Neighbours are ``gap`` pixels of ``background`` apart (rows ``row_gap``, by default the same);
    what is left of the last row is background.
    """
    number, height, width, channels = images.shape
    down, across = height + (gap if row_gap is None else row_gap), width + gap
    rows = ceil(number / columns)
    canvas = np.full((rows * down, columns * across, channels), background, np.float32)
    for i, image in enumerate(images):
        top, left = (i // columns) * down, (i % columns) * across
        canvas[top : top + height, left : left + width] = image
    return canvas[: rows * down - (down - height), : columns * across - gap]
