"""Mean-field Gaussian guide: independent Gaussians."""

from typing import Any

from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor


class MeanField(AmortizedGuide):
    """q(z | x) = N(μ(x), diag σ²(x)), with η = (μ, log σ): independent Gaussians, the guide of
    AEVB.

    Example::

        guide = guides.MeanField((1, 8, 8), 8, hidden=(200,))  # 8 latent dimensions

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), equation 9.
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
