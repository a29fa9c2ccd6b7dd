"""The generative model of a VAE: a prior and a likelihood."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.nn.conditional import ConditionalDistribution, number_of_images


class GenerativeModel(PyroModule):
    """z ~ p(z), x ~ p(x | z), independently for each image in the plate ``data``: the VAE's model.

    A model with other latents overrides `decoded`.

    Example::

        model = models.GenerativeModel(
            models.StandardNormal(8), models.Bernoulli((1, 8, 8), 8)
        )

    Args:
        prior: p(z), event shape ``(latent_dim,)``.
        likelihood: p(x | z), which decodes ``(B, latent_dim)``.

    Raises:
        UserError: before a run, a field ``offset`` that the likelihood does not take.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), section 2.1.
    """

    slot: ClassVar[str] = "model"

    def __init__(self, prior: ConditionalDistribution, likelihood: ConditionalDistribution) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def decoded(self, **fields: Any) -> Tensor:
        """Sample the latents in the plate; the likelihood decodes them, ``(B, latent_dim)``."""
        z: Tensor = pyro.sample("z", self.prior())
        return z

    def check_fields(self, fields: Mapping[str, Tensor]) -> None:
        """A ``UserError`` for an offset that the likelihood does not take, or that is none."""
        offset, likelihood = fields.get("offset"), self.likelihood
        if offset is None:
            return
        if "offset" not in inspect.signature(likelihood.forward).parameters:
            raise UserError(
                f"the field offset is the log of a row's size, of which {type(likelihood).__name__} "
                "has none: use a likelihood of counts, Poisson or NegativeBinomial, or leave it out"
            )
        if offset.dim() != 1 or not bool(offset.isfinite().all()):
            raise UserError(
                f"the field offset is of shape {tuple(offset.shape)}: expected one finite number "
                "for each row, the log of its size"
            )

    def forward(
        self,
        x: Tensor | None = None,
        size: int | None = None,
        offset: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Observe ``x`` ``(B, *event_shape)``, or generate ``size`` images: ``model(None,
        size=n)``; ``offset``, ``(B,)``, is the log of each row's size, where x are counts.
        """
        given = {} if offset is None else {"offset": offset}
        with pyro.plate("data", number_of_images(x, size)):
            law = self.likelihood(self.decoded(**_), **given)
            image: Tensor = pyro.sample("x", law, obs=x)
        return image
