"""One-hot class labels: the field ``y``, checked and encoded."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.choices import registry, specs
from pyro_vae.errors import UserError
from pyro_vae.protocols import Local, hook
from pyro_vae.validation import check_whole

NUM_CLASSES = 10
"""Of parts that are not told otherwise: the digits."""


class OneHot(nn.Module):
    """The codes of class labels: ``(*batch,)`` integers to ``(*batch, num_classes)``, in the
    module's dtype.
    """

    codes: Tensor

    def __init__(self, num_classes: int) -> None:
        check_whole("num_classes={!r}", num_classes, "classes")
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("codes", torch.eye(num_classes), persistent=False)

    def forward(self, y: Tensor | None) -> Tensor:
        """One row of the identity for each label; a ``UserError`` where no labels were given."""
        if y is None:
            raise UserError(
                "the field y, the class of each image, was not given: pass y=…, one whole "
                "number for each image"
            )
        return F.embedding(y, self.codes)

    def check(self, y: Tensor, *, unknown: bool = False) -> None:
        """A ``UserError`` for the first label that is no class, or, where classes may be
        ``unknown``, −1; it reads the host.
        """
        if y.is_floating_point() or y.dim() != 1:
            raise UserError(
                f"the field y is {y.dtype} of shape {tuple(y.shape)}: expected whole numbers, "
                "one class for each image"
            )
        wrong = (y < -unknown) | (y >= self.num_classes)
        if bool(wrong.any()):
            image = int(wrong.to(torch.uint8).argmax())
            raise UserError(
                f"the field y: image {image} is of class {int(y[image])}, where the classes are 0 "
                f"to {self.num_classes - 1} (num_classes={self.num_classes})"
                + ", and -1 where it is not known"
                * unknown
            )


class OfClasses:
    """What programs share that take classes, the field ``y``."""

    classes: OneHot
    unknown: ClassVar[bool] = False  # whether one may be −1, not known

    def check_fields(self, fields: Mapping[str, Tensor]) -> None:
        """A ``UserError`` for labels that are no classes of this program."""
        if "y" in fields:
            self.classes.check(fields["y"], unknown=self.unknown)


class EncodesClass(OfClasses):
    """What guides share of which q(z | x, y) is of the family of another guide, ``guide``, whose
    encoder sees images of `joint_shape`.
    """

    guide: Any

    def build_family(
        self,
        guide: Any,
        num_classes: int,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: Any,
        net_args: Mapping[str, Any],
    ) -> None:
        """Make ``classes``, ``embedding`` and ``guide``; a ``UserError`` if it is no family."""
        shape = joint_shape(event_shape, num_classes)
        self.classes = OneHot(num_classes)
        self.embedding = ClassEmbedding(event_shape, num_classes)
        if isinstance(guide, str):  # the network's arguments are its own: a misspelt one is refused
            read = specs.parse(guide)
            guide = specs.Choice(read.name, read.args, {**net_args, **read.kwargs})
        context = {**net_args, "net": net, "event_shape": shape, "latent_dim": latent_dim}
        self.guide = registry.build("guide", guide, **context)
        if not isinstance(self.guide, Local):
            raise UserError(
                f"{type(self).__name__}(guide={type(self.guide).__name__}): expected a guide that "
                "computes q(z | x) by local(x) and build(η), such as MeanField"
            )

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


class DecodesClass(OfClasses):
    """What models share whose likelihood decodes z and a class: ``latent_dim + num_classes``
    numbers.
    """

    @staticmethod
    def context_of(
        argument: str, values: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What the registry fills an argument's open arguments from: a likelihood also receives the
        classes.
        """
        if argument != "likelihood" or "latent_dim" not in context:
            return context
        more = values.get("num_classes", NUM_CLASSES)
        return {**context, "latent_dim": context["latent_dim"] + more}

    @staticmethod
    def check_inputs(likelihood: Any, latent_dim: int, num_classes: int) -> None:
        """A ``UserError`` for a likelihood that says that it decodes another number."""
        inputs = hook(likelihood, "latent_dim")
        if inputs is not None and inputs != latent_dim + num_classes:
            raise UserError(
                f"the likelihood takes {inputs} inputs, but z has {latent_dim} dimensions and "
                f"there are {num_classes} classes: build it with "
                f"latent_dim={latent_dim + num_classes}"
            )


def is_known(y: Tensor) -> Tensor:
    """Where a label is a class, and not −1."""
    return y >= 0


class ClassEmbedding(nn.Linear):
    """A learned embedding of the class's code, appended to the image as one more channel, or behind
    the pixels of a flat one.
    """

    def __init__(self, event_shape: tuple[int, ...], num_classes: int) -> None:
        self.event_shape = torch.Size(event_shape)
        self.joint_shape = joint_shape(event_shape, num_classes)
        super().__init__(num_classes, prod(self.joint_shape) - prod(event_shape), bias=False)
        nn.init.normal_(self.weight)

    def join(self, x: Tensor, code: Tensor) -> Tensor:
        """Images ``(*batch, *event_shape)`` with the embeddings of ``code``, ``(*batch,
        num_classes)``: ``(*batch, *joint_shape)``.
        """
        num_event = len(self.event_shape)
        extra = self(code)
        extra = extra.reshape(*extra.shape[:-1], -1, *self.event_shape[1:])
        batch = torch.broadcast_shapes(x.shape[:-num_event], extra.shape[:-num_event])
        parts = [each.expand(*batch, *each.shape[-num_event:]) for each in (x, extra)]
        return torch.cat(parts, dim=-num_event)


def joint_shape(event_shape: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    """The shape of an image with its class: one more channel, or ``num_classes`` more numbers
    behind a flat image.
    """
    first, *rest = event_shape
    return (first + (1 if rest else num_classes), *rest)
