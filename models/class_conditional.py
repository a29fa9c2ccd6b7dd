"""Class-conditional generative model: a CVAE."""

from __future__ import annotations

from typing import Any

import torch
from pyro_vae.models.generative import GenerativeModel
from torch import Tensor

from pyro_vae.nn.conditional import ConditionalDistribution
from pyro_vae.nn.one_hot import NUM_CLASSES, DecodesClass, OneHot


class ClassConditional(DecodesClass, GenerativeModel):
    """z ~ p(z), x ~ p(x | z, y): the class y is given, and the number is log p(x | y) (CVAE).

    The decoder gets z and the one-hot code of y, so build the likelihood for ``latent_dim +
    num_classes`` inputs (the command line does so). Labels are the named field ``y``:
    ``pv.fit(model, guide, x, y=labels)``. Images of chosen classes are ``model(None, size=n,
    y=labels)``.

    Args:
        prior: p(z), event shape ``(latent_dim,)``.
        likelihood: p(x | z, y), which decodes ``(B, latent_dim + num_classes)``.
        num_classes: the number of classes; labels are 0 … num_classes − 1.

    Raises:
        UserError: a likelihood of another number of inputs; later, labels that are no classes.

    Reference:
        Sohn, Lee and Yan 2015, "Learning Structured Output Representation using Deep Conditional
        Generative Models".
    """

    def __init__(
        self,
        prior: ConditionalDistribution,
        likelihood: ConditionalDistribution,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__(prior, likelihood)
        self.classes = OneHot(num_classes)
        self.check_inputs(likelihood, prior.event_shape.numel(), num_classes)

    def decoded(self, y: Tensor | None = None, **fields: Any) -> Tensor:
        """z and the class's code, ``(B, latent_dim + num_classes)``."""
        z = super().decoded()
        return torch.cat((z, self.classes(y).expand(*z.shape[:-1], -1)), dim=-1)

    def forward(  # type: ignore[override]  # it names its field, and takes no other
        self, x: Tensor | None = None, size: int | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Observe ``x`` ``(B, *event_shape)`` of the classes ``y`` ``(B,)``, or generate ``size``
        images of the classes ``y``.
        """
        return super().forward(x, size, y=y)
