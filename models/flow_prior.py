"""The flow prior."""

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import Prior
from pyro_vae.nn.flows import check_depth, density_flow, unconditional


class FlowPrior(Prior):
    """p(z) = N(f(z); 0, I) |det ∂f/∂z|, f a learned normalizing flow.

    It has ``depth`` steps, each with layers of ``width`` units.
    ``flow`` is ``RealNVP`` (affine coupling, Dinh et al. 2017), ``MAF`` (affine autoregressive,
    Papamakarios et al. 2017) or ``NSF`` (rational-quadratic splines, Durkan et al. 2019). The
    density, which training and evaluation need, takes one pass; a draw takes two passes a step for
    RealNVP, ``latent_dim`` for the others.

    Args:
        latent_dim: the number of dimensions of z.
        flow: ``RealNVP``, ``MAF`` or ``NSF``.
        depth: the number of steps of the flow.
        width: units in each of the two hidden layers of a step.
    """

    def __init__(
        self, latent_dim: int, flow: str = "RealNVP", depth: int = 4, width: int = 100
    ) -> None:
        super().__init__(latent_dim)
        self.flow = density_flow(flow, latent_dim, check_depth("FlowPrior", depth), width)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """The flow, batch shape ``()``; the context is not used."""
        return unconditional(self.flow)
