"""Class-conditional guide: the encoder of a CVAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.nn.one_hot import NUM_CLASSES, EncodesClass
from pyro_vae.protocols import hook


class ClassConditional(EncodesClass, AmortizedGuide):
    """z ~ q(z | x, y) for given classes y: another guide whose encoder sees y too (a CVAE's
    encoder).

    A learned embedding of y is appended to the image as one more channel, or after the pixels of a
    flat one. Labels are the named field ``y``.

    Args:
        guide: the family: the name or a call of an amortized guide, or one that is built for images
            of `joint_shape`.
        num_classes: the number of classes; labels are 0 … num_classes − 1.
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: the encoder of the guide that is built here.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: no such guide, or one of other images; later, labels that are no classes.

    Reference:
        Sohn, Lee and Yan 2015, "Learning Structured Output Representation using Deep Conditional
        Generative Models".
    """

    def __init__(
        self,
        guide: Any = "MeanField",
        num_classes: int = NUM_CLASSES,
        *,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, 0, net=None)
        self.event_shape = torch.Size(event_shape)
        self.build_family(guide, num_classes, event_shape, latent_dim, net, net_args)
        self.scoring_passes = hook(self.guide, "scoring_passes")

    @property
    def amortized(self) -> bool:  # type: ignore[override]
        """Whether images that it was not fitted on have a q(z | x, y)."""
        return bool(hook(self.guide, "amortized"))

    def joint(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Images ``(B, *event_shape)`` with their classes' embeddings, ``(B, *joint_shape)``."""
        return self.embedding.join(x, self.classes(y))

    def fields_go_to(self) -> tuple[Callable[..., Any], ...]:
        """The inner guide."""
        return (self.guide,)

    def local(self, x: Tensor, y: Tensor | None = None, **fields: Any) -> Tensor:
        """The inner guide's η, ``(B, num_params)``."""
        eta: Tensor = self.guide.local(self.joint(x, y), **fields)
        return eta

    def start(self, x: Tensor, y: Tensor | None = None, **fields: Any) -> Tensor:
        """The inner guide's η at which `refine` begins, ``(B, num_params)``."""
        eta: Tensor = (hook(self.guide, "start") or self.guide.local)(self.joint(x, y), **fields)
        return eta

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The inner guide's q(z | x, y), batch shape ``(B,)``."""
        law: dist.TorchDistribution = self.guide.build(eta)
        return law

    def forward(self, x: Tensor, y: Tensor | None = None, **fields: Any) -> Tensor:
        """Sample z ~ q(z | x, y), ``(B, latent_dim)``."""
        return super().forward(x, y=y, **fields)
