"""Gaussian guide with a full covariance."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.nn.conditional import check_latent_dim


class FullRank(AmortizedGuide):
    """q(z | x) = N(μ(x), L(x) L(x)ᵀ), with η = (μ, L below its diagonal, log of L's diagonal).

    P = 2D + D(D − 1)/2 numbers for each image. The KL to independent Gaussians is closed
    (`pyro_vae.pair.kl`).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Kingma and Welling 2019, "An Introduction to Variational Autoencoders", section 2.5.1.
    """

    position: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_latent_dim(latent_dim)
        num_below = latent_dim * (latent_dim - 1) // 2
        super().__init__(event_shape, latent_dim, 2 * latent_dim + num_below, net, **net_args)
        # where each entry of L is in the vector (below, diagonal, 0): a gather, as a trace
        # can't follow a boolean mask
        position = torch.full((latent_dim, latent_dim), num_below + latent_dim)
        row, column = torch.tril_indices(latent_dim, latent_dim, -1)
        position[row, column] = torch.arange(num_below)
        position.diagonal().copy_(num_below + torch.arange(latent_dim))
        self.register_buffer("position", position.flatten(), persistent=False)

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """N(μ, L Lᵀ) from ``(B, num_params)``."""
        num_dims = self.latent_dim
        num_below = eta.shape[-1] - 2 * num_dims
        loc, below, log_diagonal = eta.split([num_dims, num_below, num_dims], dim=-1)
        entries = F.pad(torch.cat((below, log_diagonal.exp()), dim=-1), (0, 1))
        scale_tril = entries.index_select(-1, self.position).unflatten(-1, (num_dims, num_dims))
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)
