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
    """How products are made; all else, the sums over pixels above all, is float32."""

    words: str = "float32"
    products: str = "ieee"
    rounds: bool = False  # to bfloat16, 8 bits of mantissa, as torch's autocast does
    device: str = ""  # the only one that has it

    @property
    def reduced(self) -> bool:
        """Whether it is less than float32, so that its error is measured."""
        return self != FLOAT32

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """Raise a ``UserError`` where there is no such arithmetic."""
        if self.reduced:
            need_float32(self.words.split()[0].lower(), dtype)
        if self.device not in ("", place.type):
            raise UserError(
                f"{self.words} are for {self.device.upper()} devices, but this device is "
                f"{place.type}: use precision='bfloat16', or 'float32'"
            )

    def rounding(self, place: torch.device) -> AbstractContextManager[None]:
        """What is traced inside has products of this precision, as a training step of `fit`."""
        return products_rounded(place.type) if self.rounds else nullcontext()

    def running(self) -> AbstractContextManager[None]:
        """Products as they are named here (torch's default are TF32 convolutions on CUDA), the
        settings put back on leaving.
        """
        return exact(self.products)


FLOAT32 = Precision()
PRECISIONS: Mapping[str, Precision] = {
    "float32": FLOAT32,
    # CUDA's TensorFloat-32: 10 bits of mantissa, sums in float32
    "tf32": Precision("TF32 products, float32 sums", "tf32", device="cuda"),
    "bfloat16": Precision("bfloat16 products, float32 sums", rounds=True),
}


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
