"""One-hot class labels: the field ``y``, checked and encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.errors import UserError
from pyro_vae.protocols import hook
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


class DecodesClass:
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
