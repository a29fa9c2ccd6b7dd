"""Mixture-of-Gaussians prior."""

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.nn.conditional import Prior
from pyro_vae.validation import check_whole


class MixtureOfGaussians(Prior):
    """p(z) = Σ_c π_c N(z; m_c, diag s_c²): weights, means and scales are learned.

    It starts near N(0, I): means at draws of N(0, 0.3² I), scales 1, equal weights.

    Args:
        latent_dim: D, the number of dimensions of z.
        components: the number of Gaussians.

    Raises:
        UserError: a size that is not a whole number of 1 or more.

    Reference:
        Dilokthanakul et al. 2016, "Deep Unsupervised Clustering with Gaussian Mixture VAEs";
        Tomczak and Welling 2018, "VAE with a VampPrior" (as a baseline).
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__(latent_dim)
        check_whole("MixtureOfGaussians(components={!r})", components, "components")
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(0.3 * torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """The mixture, batch shape ``()``; the context is not used."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
