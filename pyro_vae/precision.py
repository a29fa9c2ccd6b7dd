"""The precision of matrix products in an evaluation: float32, or less where that is asked for, its error then measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pyro_vae.errors import UserError, did_you_mean

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")
"""The operations that cost: their factors are rounded, what they sum over is summed in float32."""

IMAGES, DRAWS = 16, 1000
"""On which the error is measured."""


@dataclass(frozen=True)
class Precision:
    """float32, as the programs are written."""

    words: str = "float32"
    reduced: bool = False
    tf32: bool = False

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """Raise a ``UserError`` where there is no such arithmetic."""

    def rewrite(self, module: fx.GraphModule) -> None:
        """Change a traced program."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """CUDA's products as they are named here (torch's default are TF32 convolutions), the settings put back on leaving."""
        matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


@dataclass(frozen=True)
class TF32(Precision):
    """CUDA's TensorFloat-32 products: 10 bits of mantissa, sums in float32."""

    words: str = "TF32 products, float32 sums"
    reduced: bool = True
    tf32: bool = True

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """A CUDA device and float32 parameters."""
        _need_float32("tf32", dtype)
        if place.type != "cuda":
            raise UserError(
                f"precision='tf32' is arithmetic of CUDA devices, and this is {place.type}: use bfloat16, or float32"
            )


@dataclass(frozen=True)
class BFloat16(Precision):
    """The factors of products in bfloat16, 8 bits of mantissa; all else, the sums over pixels above all, in float32."""

    words: str = "bfloat16 products, float32 sums"
    reduced: bool = True

    def check(self, dtype: torch.dtype, place: torch.device) -> None:
        """float32 parameters."""
        _need_float32("bfloat16", dtype)

    def rewrite(self, module: fx.GraphModule) -> None:
        """Round the factors of each product, and go on in float32 from its result."""
        graph = module.graph
        aten = torch.ops.aten
        rounded: dict[fx.Node, fx.Node] = {}
        for node in list(graph.nodes):
            if node.op != "call_function" or getattr(node.target, "__name__", "").split(".")[0] not in PRODUCTS:
                continue
            bias = node.args[0] if node.target in (aten.addmm.default, aten.baddbmm.default) else None
            with graph.inserting_before(node):
                factors = [a for a in node.args[bias is not None :] if isinstance(a, fx.Node)]
                for factor in factors:
                    if factor not in rounded:
                        rounded[factor] = graph.call_function(
                            aten._to_copy.default, (factor,), {"dtype": torch.bfloat16}
                        )
                args = [rounded[a] if isinstance(a, fx.Node) else a for a in node.args[bias is not None :]]
                plain = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}.get(
                    node.target, node.target
                )
                product = graph.call_function(plain, tuple(args), {} if bias is not None else dict(node.kwargs))
                result = graph.call_function(aten._to_copy.default, (product,), {"dtype": torch.float32})
                if bias is not None:
                    result = graph.call_function(aten.add.Tensor, (result, bias))
            node.replace_all_uses_with(result)
            graph.erase_node(node)
        module.recompile()


FLOAT32 = Precision()
PRECISIONS: Mapping[str, Precision] = {"float32": FLOAT32, "tf32": TF32(), "bfloat16": BFloat16()}


def find_precision(name: str) -> Precision:
    """The precision of that name; a ``UserError`` lists the known ones."""
    if name not in PRECISIONS:
        raise UserError(did_you_mean("precision", str(name), PRECISIONS))
    return PRECISIONS[name]


def _need_float32(name: str, dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        raise UserError(
            f"precision={name!r} rounds float32 products, and these parameters are {str(dtype).removeprefix('torch.')}: "
            "call .float() on model and guide, or leave precision out"
        )


@dataclass(frozen=True)
class MeasuredError:
    """log p(x) at reduced precision less that in float32, in the same noise, on some of the images (nats)."""

    mean: float
    worst: float
    num_images: int
    num_samples: int

    def __str__(self) -> str:
        return (
            f"error on {self.num_images} of these images at K = {self.num_samples}: mean {self.mean:+.1g}, "
            f"worst {self.worst:.1g} nats"
        )


def measure_error(
    exact: Callable[[Tensor, Mapping[str, Tensor], int], Tensor],
    reduced: Callable[[Tensor, Mapping[str, Tensor], int], Tensor],
    x: Tensor,
    fields: Mapping[str, Tensor],
    num_samples: int,
) -> MeasuredError:
    """Both ways to log p(x), ``(x, fields, k) -> (B,)``, on the same images in the same noise."""
    found = []
    for estimate in (exact, reduced):
        torch.manual_seed(0)
        found.append(estimate(x, fields, num_samples).double())
    difference = found[1] - found[0]
    return MeasuredError(float(difference.mean()), float(difference.abs().max()), len(difference), num_samples)
