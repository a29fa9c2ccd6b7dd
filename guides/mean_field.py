"""The textbook guide: independent Gaussians."""

from typing import Any

from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor


class MeanField(AmortizedGuide):
    """q(z | x) = N(μ(x), diag σ²(x)), with η = (μ, log σ) (AEVB, equation 9).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        net: the encoder: a name, a call, a class, or a module that is ready (`make_encoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: NetSpec | None = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, 2 * latent_dim, net, **net_args)

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """N(μ, diag σ²) from ``(B, 2 · latent_dim)``."""
        loc, log_scale = eta.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
