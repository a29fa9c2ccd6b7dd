"""Standard normal prior."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import Prior


class StandardNormal(Prior):
    """p(z) = N(0, I) on ``latent_dim`` dimensions: the prior of AEVB.

    Args:
        latent_dim: D, the number of dimensions of z.

    Raises:
        UserError: ``latent_dim`` is not a whole number of 1 or more.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), appendix B.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # buffers, so that the prior follows the model to its device and dtype
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """N(0, I), batch shape ``()``; the context is not used."""
        return dist.Normal(self.loc, self.scale).to_event(1)
