"""The generative model of a variational auto-encoder."""

from typing import Any, ClassVar

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.nn.conditional import ConditionalDistribution, number_of_images


class GenerativeModel(PyroModule):
    """z ~ p(z), x ~ p(x | z), independently for each image in the plate ``data``.

    A model with other latents overrides `decoded`.

    Args:
        prior: p(z), event shape ``(latent_dim,)``.
        likelihood: p(x | z), which decodes ``(B, latent_dim)``.
    """

    slot: ClassVar[str] = "model"

    def __init__(self, prior: ConditionalDistribution, likelihood: ConditionalDistribution) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def decoded(self, **fields: Any) -> Tensor:
        """The latents, sampled in the plate: what the likelihood decodes, ``(B, latent_dim)``."""
        z: Tensor = pyro.sample("z", self.prior())
        return z

    def forward(self, x: Tensor | None = None, size: int | None = None, **_: Any) -> Tensor:
        """Observe ``x`` ``(B, *event_shape)``, or generate ``size`` images: ``model(None,
        size=n)``.
        """
        with pyro.plate("data", number_of_images(x, size)):
            image: Tensor = pyro.sample("x", self.likelihood(self.decoded(**_)), obs=x)
        return image
