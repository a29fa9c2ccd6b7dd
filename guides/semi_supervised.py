"""Semi-supervised guide (M2): q(y | x) and q(z | x, y)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.choices import registry, specs
from pyro_vae.errors import UserError
from pyro_vae.nn import make_encoder
from pyro_vae.nn.class_embedding import ClassEmbedding, joint_shape
from pyro_vae.nn.one_hot import NUM_CLASSES, OneHot, is_known
from pyro_vae.protocols import Local

NEVER = -1e4
"""A log probability whose exponential is 0, and which is finite, so that no gradient is NaN."""


class SemiSupervised(PyroModule):
    """y ~ q(y | x), z ~ q(z | x, y): the guide of M2, for images of which a few have a known class.

    q(y | x) has a network of its own; q(z | x, y) is of the family of another guide. y is
    enumerated. In train mode q(y | x) has all its mass at the known class, where the field ``y``
    has one; −1 is an unknown class. In eval mode labels are not used, so that log p(x) is of x
    alone.

    Args:
        guide: the family of q(z | x, y): the name of an amortized guide.
        num_classes: the number of classes.
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: both networks: a name, a call or a class. A module is that of q(z | x, y); q(y | x)
            then has an MLP.
        **net_args: arguments of the networks, such as ``hidden=(200, 200)``.

    Raises:
        UserError: no such guide; later, labels that are neither −1 nor classes.

    Reference:
        Kingma et al. 2014, "Semi-supervised Learning with Deep Generative Models".
    """

    slot: ClassVar[str] = "guide"

    def __init__(
        self,
        guide: Any = "MeanField",
        num_classes: int = NUM_CLASSES,
        *,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: str | type = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__()
        joint = joint_shape(event_shape, num_classes)
        shapes: dict[str, Any] = {"event_shape": joint, "latent_dim": latent_dim}
        self.classes = OneHot(num_classes)
        self.embedding = ClassEmbedding(event_shape, num_classes)
        if isinstance(guide, str):  # the networks' arguments are its own: a misspelt one is refused
            read = specs.parse(guide)
            guide = specs.Choice(read.name, read.args, {**net_args, **read.kwargs})
        self.guide = registry.build("guide", guide, **shapes, net=net)
        own = net if isinstance(net, str | type) else "MLP"  # a module that is ready is one network
        self.classifier = make_encoder(own, event_shape, num_classes, **net_args)
        if not isinstance(self.guide, Local):
            raise UserError(
                f"SemiSupervised(guide={type(self.guide).__name__}): expected a guide that "
                "computes q(z | x) by local(x) and build(η), such as MeanField"
            )

    @staticmethod
    def context_of(
        argument: str, values: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What the registry fills an argument's open arguments from: the inner guide sees larger
        images.
        """
        if argument != "guide" or "event_shape" not in context:
            return context
        shape = joint_shape(context["event_shape"], values.get("num_classes", NUM_CLASSES))
        return {**context, "event_shape": shape}

    def check_fields(self, fields: Mapping[str, Tensor]) -> None:
        """A ``UserError`` for labels that are neither −1 nor classes of this guide."""
        if "y" in fields:
            self.classes.check(fields["y"], unknown=True)

    def classify(self, x: Tensor) -> Tensor:
        """log q(y | x) of each class, ``(B, num_classes)``, for images ``(B, *event_shape)``."""
        return torch.log_softmax(self.classifier(x), -1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Sample y and z, ``(B, latent_dim)``; ``y``, ``(B,)``, are the classes or −1."""
        logits = self.classify(x)
        if self.training and y is not None:
            certain = NEVER * (1 - self.classes(y.clamp(min=0)))
            logits = torch.where(is_known(y).unsqueeze(-1), certain, logits)
        with pyro.plate("data", x.shape[0]):
            law = dist.OneHotCategorical(logits=logits)
            code = pyro.sample("y", law, infer={"enumerate": "parallel"})
            eta = self.guide.local(self.embedding.join(x, code))
            z: Tensor = pyro.sample("z", self.guide.build(eta))
        return z
