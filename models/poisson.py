"""The likelihood of counts whose variance is their mean."""

from typing import Any

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import Likelihood, NetSpec, output_of, rate_of


class Poisson(Likelihood):
    """x_d | z ~ Poisson(softplus(l_d(z))): grey levels or photons as counts 0, 1, 2, …, without an
    upper end.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        net: the decoder: a name, a call, a class, or a module that is ready (`make_decoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
    """

    kind = "mass"
    observes = "counts"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, 1, net, **net_args)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        (output,) = self.outputs(context)
        return dist.Poisson(rate_of(output)).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The inverse of softplus at the mean."""
        return (output_of(mean),)
