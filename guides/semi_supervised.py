"""Semi-supervised guide (M2): q(y | x) and q(z | x, y)."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.nn import make_encoder
from pyro_vae.nn.one_hot import NUM_CLASSES, EncodesClass, is_known

NEVER = -1e4
"""A log probability whose exponential is 0, and which is finite, so that no gradient is NaN."""


class SemiSupervised(EncodesClass, PyroModule):
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
    unknown: ClassVar[bool] = True

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
        self.build_family(guide, num_classes, event_shape, latent_dim, net, net_args)
        own = net if isinstance(net, str | type) else "MLP"  # a module that is ready is one network
        self.classifier = make_encoder(own, event_shape, num_classes, **net_args)

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
