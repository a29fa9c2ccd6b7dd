"""Matrix-product precision of an evaluation: float32, TF32 or bfloat16, with the measured error."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.ambient import need_float32, products_rounded
from pyro_vae.errors import UserError
from pyro_vae.validation import check_choice

IMAGES = 16
"""On which the error is measured."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic of products; all else, the sums over pixels above all, is float32."""

    name: str = "float32"
    words: str = "float32"
    products: str = "ieee"  # of float32 numbers (`ambient.exact`): 10 bits of mantissa in tf32
    rounded: bool = False  # to bfloat16's 8 bits, as torch's autocast does and `fit` in its steps

    @property
    def reduced(self) -> bool:
        """Whether it is less than the programs are written in."""
        return self.rounded or self.products != "ieee"

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """Raise a ``UserError`` where there is no such arithmetic."""
        if self.reduced:
            need_float32(self.name, dtype)
        if self.products == "tf32" and place.type != "cuda":
            raise UserError(
                f"precision='tf32' is for CUDA devices, but this device is {place.type}: use "
                "bfloat16, or float32"
            )

    def rounding(self, place: torch.device) -> AbstractContextManager[None]:
        """What is traced inside has products of this precision."""
        return products_rounded(place.type) if self.rounded else nullcontext()


FLOAT32 = Precision()
PRECISIONS = {
    each.name: each
    for each in (
        FLOAT32,
        Precision("tf32", "TF32 products, float32 sums", "tf32"),
        Precision("bfloat16", "bfloat16 products, float32 sums", rounded=True),
    )
}


def find_precision(name: str) -> Precision:
    """The precision of that name; a ``UserError`` lists the known ones."""
    return PRECISIONS[check_choice("precision", name, PRECISIONS)]


def error_in_words(difference: Tensor, num_samples: int) -> str:
    """log p(x) at reduced precision less that in float32, ``(B,)``, of the same images in the same
    noise.
    """
    return (
        f"error on {len(difference)} of these images at K = {num_samples}: mean "
        f"{float(difference.mean()):+.1g}, worst {float(difference.abs().max()):.1g} nats"
    )
