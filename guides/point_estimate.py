"""The point mass of the plain autoencoder."""

from typing import Any

from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor


class PointEstimate(AmortizedGuide):
    """q(z | x) = δ(z − f(x)): at KL weight 0 the plain autoencoder, exactly.

    η = f(x). At KL weight 1 it is the MAP estimate of z. A point mass has no density, so there are
    no importance weights: `log_marginal` refuses it.

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
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, latent_dim, net, **net_args)

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """δ(z − η) from ``(B, latent_dim)``."""
        return dist.Delta(eta, event_dim=1)
