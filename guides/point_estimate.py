"""Point-mass guide: the deterministic autoencoder."""

from typing import Any

from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor


class PointEstimate(AmortizedGuide):
    """q(z | x) = δ(z − f(x)), a point mass: at KL weight 0 the plain autoencoder.

    η = f(x). At KL weight 1 it gives the MAP estimate of z. A point mass has no density and no
    importance weights, so `log_marginal` refuses it.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Rumelhart, Hinton and Williams 1986 (the autoencoder); Ghosh et al. 2020, "From Variational
        to Deterministic Autoencoders".
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
