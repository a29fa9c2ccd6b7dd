"""The gated perceptron of Tomczak & Welling's experiments, as a user's own network:
`benchmarks.reproduce.gated:GatedMLP`.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.nn import Net


class GatedDense(nn.Module):
    """a(x) · σ(g(x)), both affine (Tomczak & Welling 2018; van den Oord et al. 2016)."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.value, self.gate = (
            nn.Linear(num_inputs, num_outputs),
            nn.Linear(num_inputs, num_outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(rows, num_inputs)`` to ``(rows, num_outputs)``."""
        gated: Tensor = self.value(x) * torch.sigmoid(self.gate(x))
        return gated


class GatedMLP(Net):
    """Gated layers of ``hidden`` widths, then an affine one; normal weights of variance 2 / fan in
    (He et al. 2015).
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        hidden: tuple[int, ...] = (300, 300),
    ) -> None:
        super().__init__(in_shape, out_shape)
        widths = (prod(in_shape), *hidden)
        gates = (GatedDense(before, after) for before, after in pairwise(widths))
        self.layers = nn.Sequential(*gates, nn.Linear(widths[-1], prod(out_shape)))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    @classmethod
    def decoder(cls, num_inputs: int, out_shape: tuple[int, ...], **args: Any) -> Net:
        """The same widths, reversed."""
        if "hidden" in args:
            args["hidden"] = tuple(reversed(args["hidden"]))
        return cls((num_inputs,), out_shape, **args)

    def transform(self, rows: Tensor) -> Tensor:
        """``(rows, *in_shape)`` to ``(rows, numel(out_shape))``."""
        outputs: Tensor = self.layers(rows.flatten(1))
        return outputs
