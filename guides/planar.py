"""Planar flow guide."""

from typing import Any

from pyro import distributions as dist
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.nn.flows import check_depth


class Planar(AmortizedGuide):
    """z = f_T ∘ … ∘ f_1(μ + σ ε), each f_t(z) = z + û_t tanh(w_tᵀ z + b_t): planar flow.

    η = (μ, log σ, then b, u, w of each step), all from the network; û keeps a step invertible. The
    inverse has no closed form: the guide scores only its own last draw, so STL, DReG, AIS and the
    defensive proposal refuse it.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        depth: T, the number of steps.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", equation 10 and
        appendix A.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        depth: int = 10,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_depth("Planar", depth, latent_dim)
        super().__init__(
            event_shape, latent_dim, 2 * latent_dim + depth * (1 + 2 * latent_dim), net, **net_args
        )
        self.depth = depth

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The law of z from ``(B, num_params)``."""
        num_dims = self.latent_dim
        loc, log_scale, *steps = eta.split(
            [num_dims, num_dims, *[1, num_dims, num_dims] * self.depth], dim=-1
        )
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        transforms = [
            ConditionedPlanar(tuple(steps[start : start + 3])) for start in range(0, len(steps), 3)
        ]
        return dist.TransformedDistribution(base, transforms)
