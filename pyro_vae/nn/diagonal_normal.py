"""A Gaussian whose mean and variances a network computes: the conditional density between two
levels of latents.
"""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn import Net
from pyro_vae.nn.conditional import ConditionalDistribution


class DiagonalNormal(ConditionalDistribution):
    """p(z | c) = N(μ(c), diag σ²(c)), with (μ, log σ) = net(c): for the context c,
    ``net.in_shape``, z is a vector.

    It stands in a model, p(z1 | z2), and in a guide, q(z1 | x) and q(z2 | z1), alike.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.event_shape = torch.Size([net.out_shape.numel() // 2])

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """N(μ, diag σ²) at ``context``, ``(*batch, *net.in_shape)``."""
        if context is None:
            raise ValueError("DiagonalNormal is p(z | c): call it with c")
        loc, log_scale = self.net(context).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
