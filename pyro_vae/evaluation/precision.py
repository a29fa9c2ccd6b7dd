"""The precision of matrix products in an evaluation: float32, or less where that is asked for, its
error then measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.ambient import exact
from pyro_vae.errors import UserError
from pyro_vae.validation import check_choice

_aten = torch.ops.aten
PRODUCTS: dict[Any, tuple[Any, int, int | None]] = {
    _aten.mm.default: (_aten.mm.default, 0, None),
    _aten.addmm.default: (_aten.mm.default, 1, 0),
    _aten.bmm.default: (_aten.bmm.default, 0, None),
    _aten.baddbmm.default: (_aten.bmm.default, 1, 0),
    _aten.convolution.default: (_aten.convolution.default, 0, 2),
}
"""The operations that cost: the same without a bias, where its two factors stand, and its bias
(None: there is none).
"""

IMAGES, DRAWS = 16, 1000
"""On which the error is measured."""


@dataclass(frozen=True)
class Precision:
    """How products are made; all else, the sums over pixels above all, is float32."""

    words: str = "float32"
    products: str = "ieee"
    factors: torch.dtype | None = None  # to which the two factors of each product are rounded
    only_on: str = ""  # the device that has it

    @property
    def reduced(self) -> bool:
        """Whether it is less than float32, so that its error is measured."""
        return self.words != "float32"

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """Raise a ``UserError`` where there is no such arithmetic."""
        if self.reduced and dtype != torch.float32:
            raise UserError(
                f"{self.words} are for float32 parameters, but these are "
                f"{str(dtype).removeprefix('torch.')}: call .float() on model and guide, or leave "
                "precision out"
            )
        if self.only_on not in ("", place.type):
            raise UserError(
                f"{self.words} are for {self.only_on.upper()} devices, but this device is "
                f"{place.type}: use precision='bfloat16', or 'float32'"
            )

    def running(self) -> AbstractContextManager[None]:
        """Products as they are named here (torch's default are TF32 convolutions on CUDA), the
        settings put back on leaving.
        """
        return exact(self.products)

    def rewrite(self, module: fx.GraphModule) -> None:
        """Round the two factors of each product of a traced program, and go on in float32 from its
        result, which is rounded once more; a bias is added there.
        """
        if self.factors is None:
            return
        graph, rounded = module.graph, {}

        def cast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
            return graph.call_function(_aten._to_copy.default, (node,), {"dtype": dtype})

        for node in list(graph.nodes):
            if node.op != "call_function" or node.target not in PRODUCTS:
                continue
            plain, first, bias_at = PRODUCTS[node.target]
            arguments = list(node.args)
            bias = None if bias_at is None else arguments[bias_at]
            with graph.inserting_before(node):
                for position in (first, first + 1):
                    if (factor := arguments[position]) not in rounded:
                        rounded[factor] = cast(factor, self.factors)
                    arguments[position] = rounded[factor]
                if bias_at == 0:
                    del arguments[0]
                elif bias_at is not None:
                    arguments[bias_at] = None
                result = cast(graph.call_function(plain, tuple(arguments)), torch.float32)
                if bias is not None:
                    if bias_at:  # a convolution's: one number a channel
                        ones = [1] * (node.meta["val"].dim() - 2)
                        bias = graph.call_function(_aten.view.default, (bias, [-1, *ones]))
                    result = graph.call_function(_aten.add.Tensor, (result, bias))
            node.replace_all_uses_with(result)
            graph.erase_node(node)
        module.recompile()


FLOAT32 = Precision()
PRECISIONS: Mapping[str, Precision] = {
    "float32": FLOAT32,
    # CUDA's TensorFloat-32: 10 bits of mantissa
    "tf32": Precision("TF32 products, float32 sums", "tf32", only_on="cuda"),
    # 8 bits of mantissa
    "bfloat16": Precision("bfloat16 products, float32 sums", factors=torch.bfloat16),
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
