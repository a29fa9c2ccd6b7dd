"""Class-conditional guide: the encoder of a CVAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor

from pyro_vae.choices import registry, specs
from pyro_vae.errors import UserError
from pyro_vae.nn.class_embedding import ClassEmbedding, joint_shape
from pyro_vae.nn.one_hot import NUM_CLASSES, OneHot


class ClassConditional(AmortizedGuide):
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
        joint = joint_shape(event_shape, num_classes)
        shapes: dict[str, Any] = {"event_shape": joint, "latent_dim": latent_dim}
        self.classes = OneHot(num_classes)
        self.embedding = ClassEmbedding(event_shape, num_classes)
        if isinstance(guide, str):  # written as its own, so that a misspelt one is refused
            read = specs.parse(guide)
            guide = specs.Choice(read.name, read.args, {**net_args, **read.kwargs})
        self.guide = registry.build("guide", guide, **shapes, net=net, **net_args)
        if not isinstance(self.guide, AmortizedGuide):
            raise UserError(
                f"ClassConditional(guide={type(self.guide).__name__}): expected a guide that "
                "computes q(z | x) by local(x) and build(η), such as MeanField"
            )
        self.scoring_passes = self.guide.scoring_passes

    @property
    def amortized(self) -> bool:  # type: ignore[override]
        """Whether images that it was not fitted on have a q(z | x, y)."""
        return bool(self.guide.amortized)

    @staticmethod
    def context_of(
        argument: str, values: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What the registry fills an argument's open arguments from: the inner guide sees larger
        images, by the network that is written here.
        """
        if argument != "guide" or "event_shape" not in context:
            return context
        shape = joint_shape(context["event_shape"], values.get("num_classes", NUM_CLASSES))
        net = {k: v for k, v in values.items() if k not in ("guide", "num_classes")}
        return {**context, **net, "event_shape": shape}

    def check_fields(self, fields: Mapping[str, Tensor]) -> None:
        """A ``UserError`` for labels that are no classes of this guide."""
        if "y" in fields:
            self.classes.check(fields["y"])

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
        eta: Tensor = self.guide.start(self.joint(x, y), **fields)
        return eta

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The inner guide's q(z | x, y), batch shape ``(B,)``."""
        law: dist.TorchDistribution = self.guide.build(eta)
        return law

    def forward(self, x: Tensor, y: Tensor | None = None, **fields: Any) -> Tensor:
        """Sample z ~ q(z | x, y), ``(B, latent_dim)``."""
        return super().forward(x, y=y, **fields)
