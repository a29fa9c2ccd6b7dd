"""Neural spline flow (NSF) guide."""

from typing import Any

from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.nn.flows import check_depth, pushed_forward, spline_transform
from pyro_vae.validation import check_whole


class NSF(AmortizedGuide):
    """z = μ + σ T(ε), T an autoregressive rational-quadratic spline flow given a context h(x).

    η = (μ, log σ, h). The flow is that of the paper, inverted: a draw takes one network pass a
    step, a z that the guide did not draw D passes. Each spline has ``bins`` pieces on [−5, 5].

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        depth: the number of steps.
        bins: pieces of each spline.
        width: units in each of the two hidden layers of a step.
        context_dim: numbers in h(x).
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Durkan et al. 2019, "Neural Spline Flows", section 3.1.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        depth: int = 2,
        bins: int = 8,
        width: int = 100,
        context_dim: int = 50,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_depth("NSF", depth, latent_dim)
        check_whole("NSF(bins={!r})", bins, "pieces")
        check_whole("NSF(context_dim={!r})", context_dim, "numbers in the context")
        super().__init__(event_shape, latent_dim, 2 * latent_dim + context_dim, net, **net_args)
        self.scoring_passes = depth * (latent_dim + 1)  # the last for the Jacobian
        self.flow = spline_transform(latent_dim, context_dim, depth, width, bins)

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The law of z from ``(B, num_params)``."""
        num_dims = self.latent_dim
        loc, log_scale, context = eta.split(
            [num_dims, num_dims, eta.shape[-1] - 2 * num_dims], dim=-1
        )
        return pushed_forward(self.flow(context), loc, log_scale.exp())
