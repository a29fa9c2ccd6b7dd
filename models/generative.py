"""The generative model of a variational auto-encoder."""

from typing import Any, ClassVar

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.nn.conditional import ConditionalDistribution


class GenerativeModel(PyroModule):
    """z ~ p(z), x ~ p(x | z), independently for each image in the plate ``data``."""

    slot: ClassVar[str] = "model"

    def __init__(self, prior: ConditionalDistribution, likelihood: ConditionalDistribution) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, x: Tensor | None = None, size: int | None = None, **_: Any) -> Tensor:
        """Observe ``x`` ``(B, *event_shape)``, or generate ``size`` images: ``model(None,
        size=n)``.
        """
        num_images = size if x is None else x.shape[0]
        if num_images is None:
            raise ValueError(
                "the model was given neither images nor a size: call model(x), or model(None, "
                "size=n)"
            )
        with pyro.plate("data", num_images):
            z = pyro.sample("z", self.prior())
            image: Tensor = pyro.sample("x", self.likelihood(z), obs=x)
        return image
