"""Gaussian guide with a low-rank covariance."""

from typing import Any

from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.validation import check_whole


class LowRank(AmortizedGuide):
    """q(z | x) = N(μ(x), W(x) W(x)ᵀ + diag σ²(x)): a Gaussian whose W has ``rank`` columns.

    η = (μ, log σ, W): P = (2 + rank) · D numbers for each image. The KL to independent Gaussians is
    closed (`pyro_vae.pair.kl`).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        rank: columns of W, the number of directions of correlation.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Rezende, Mohamed and Wierstra 2014, "Stochastic Backpropagation" (rank 1).
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        rank: int = 2,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_whole("LowRank(rank={!r})", rank, "directions")
        super().__init__(event_shape, latent_dim, (2 + rank) * latent_dim, net, **net_args)
        self.rank = rank

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """N(μ, W Wᵀ + diag σ²) from ``(B, num_params)``."""
        num_dims = self.latent_dim
        loc, log_scale, factor = eta.split([num_dims, num_dims, self.rank * num_dims], dim=-1)
        factor = factor.unflatten(-1, (num_dims, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, (2 * log_scale).exp())
