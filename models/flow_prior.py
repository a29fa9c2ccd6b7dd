"""Normalizing-flow prior."""

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import Prior
from pyro_vae.nn.flows import check_depth, density_flow, unconditional


class FlowPrior(Prior):
    """p(z) = N(f(z); 0, I) |det ∂f/∂z|, f a learned normalizing flow.

    The density, which training and evaluation need, takes one network pass a step. A draw takes two
    passes a step with RealNVP, and D with the others.

    Args:
        latent_dim: D, the number of dimensions of z.
        flow: ``RealNVP`` (affine coupling), ``MAF`` (affine autoregressive) or ``NSF``
            (rational-quadratic splines).
        depth: the number of steps.
        width: units in each of the two hidden layers of a step.

    Raises:
        UserError: an unknown flow, or a size that is not a whole number of 1 or more.

    Reference:
        Dinh, Sohl-Dickstein and Bengio 2017 (RealNVP); Papamakarios, Pavlakou and Murray 2017
        (MAF); Durkan et al. 2019 (NSF).
    """

    def __init__(
        self, latent_dim: int, flow: str = "RealNVP", depth: int = 4, width: int = 100
    ) -> None:
        super().__init__(latent_dim)
        self.flow = density_flow(
            flow, latent_dim, check_depth("FlowPrior", depth, latent_dim), width
        )

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """The flow, batch shape ``()``; the context is not used."""
        return unconditional(self.flow)
