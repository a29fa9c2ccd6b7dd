"""Householder flow guide."""

from typing import Any

from pyro import distributions as dist
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.nn.flows import check_depth


class Householder(AmortizedGuide):
    """z = H_T ⋯ H_1 (μ + σ ε), H_t reflections: Householder flow, a Gaussian with rotated axes.

    H_t = I − 2 v_t v_tᵀ / ‖v_t‖², and η = (μ, log σ, v_1, …, v_T): here the network gives every
    v_t. T = D reflections give every Gaussian. The flow preserves volume, and any z can be scored.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        depth: T, the number of reflections.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Tomczak and Welling 2016, "Improving Variational Auto-Encoders using Householder Flow".
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        depth: int = 10,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_depth("Householder", depth, latent_dim)
        super().__init__(event_shape, latent_dim, (2 + depth) * latent_dim, net, **net_args)

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The law of z from ``(B, num_params)``."""
        num_dims = self.latent_dim
        loc, log_scale, normals = eta.split(
            [num_dims, num_dims, eta.shape[-1] - 2 * num_dims], dim=-1
        )
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return dist.TransformedDistribution(
            base, [ConditionedHouseholder(normals.unflatten(-1, (-1, num_dims)))]
        )
