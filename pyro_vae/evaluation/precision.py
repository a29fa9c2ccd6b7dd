"""Matrix-product precision of an evaluation: float32, TF32 or bfloat16, with the measured error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.ambient import exact, need_float32, products_rounded
from pyro_vae.errors import UserError
from pyro_vae.validation import check_choice

IMAGES, DRAWS = 16, 1000
"""On which the error is measured."""


@dataclass(frozen=True)
class Precision:
    """float32, as the programs are written."""

    words: str = "float32"
    reduced: bool = False
    products: str = "ieee"

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """Raise a ``UserError`` where there is no such arithmetic."""

    def rounding(self, place: torch.device) -> AbstractContextManager[None]:
        """What is traced inside has products of this precision."""
        return nullcontext()

    def running(self) -> AbstractContextManager[None]:
        """Products as they are named here (torch's default are TF32 convolutions on CUDA), the
        settings put back on leaving.
        """
        return exact(self.products)


@dataclass(frozen=True)
class TF32(Precision):
    """CUDA's TensorFloat-32 products: 10 bits of mantissa, sums in float32."""

    words: str = "TF32 products, float32 sums"
    reduced: bool = True
    products: str = "tf32"

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """A CUDA device and float32 parameters."""
        need_float32("tf32", dtype)
        if place.type != "cuda":
            raise UserError(
                f"precision='tf32' is for CUDA devices, but this device is {place.type}: use "
                "bfloat16, or float32"
            )


@dataclass(frozen=True)
class BFloat16(Precision):
    """Products of bfloat16 numbers (8 bits of mantissa), summed in float32 and rounded once more,
    as torch's autocast has them; all else, the sums over pixels above all, in float32.
    """

    words: str = "bfloat16 products, float32 sums"
    reduced: bool = True

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """float32 parameters."""
        need_float32("bfloat16", dtype)

    def rounding(self, place: torch.device) -> AbstractContextManager[None]:
        """As a training step of `fit` has them."""
        return products_rounded(place.type)


FLOAT32 = Precision()
PRECISIONS: Mapping[str, Precision] = {"float32": FLOAT32, "tf32": TF32(), "bfloat16": BFloat16()}


def find_precision(name: str) -> Precision:
    """The precision of that name; a ``UserError`` lists the known ones."""
    return PRECISIONS[check_choice("precision", name, PRECISIONS)]


def measure_error(
    exact: Callable[[Tensor, Mapping[str, Tensor], int], Tensor],
    reduced: Callable[[Tensor, Mapping[str, Tensor], int], Tensor],
    x: Tensor,
    fields: Mapping[str, Tensor],
    num_samples: int,
) -> str:
    """log p(x) at reduced precision less that in float32, ``(x, fields, k) -> (B,)`` each, on the
    same images in the same noise: in words.
    """
    found = []
    for estimate in (exact, reduced):
        torch.manual_seed(0)
        found.append(estimate(x, fields, num_samples).double())
    difference = found[1] - found[0]
    return (
        f"error on {len(difference)} of these images at K = {num_samples}: mean "
        f"{float(difference.mean()):+.1g}, worst {float(difference.abs().max()):.1g} nats"
    )
