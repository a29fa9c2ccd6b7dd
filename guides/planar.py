"""The planar flow."""

from typing import Any

from pyro import distributions as dist
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.nn.conditional import check_latent_dim
from pyro_vae.nn.flows import check_depth


class Planar(AmortizedGuide):
    """z = f_T ∘ … ∘ f_1(μ + σ ε), each f_t(z) = z + û_t tanh(w_tᵀ z + b_t).

    η = (μ, log σ, then b, u, w of each of the ``depth`` steps), all from the network (Rezende &
    Mohamed 2015, equation 10; û keeps it invertible, appendix A). It has no inverse in closed form:
    it scores its own last draw and no other z, so that STL, DReG, AIS and the defensive proposal
    refuse it.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        depth: the number of steps of the flow.
        net: the encoder: a name, a call, a class, or a module that is ready (`make_encoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        depth: int = 10,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_latent_dim(latent_dim)
        check_depth("Planar", depth)
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
