"""Class embedding: the class as a further input of an encoder."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn


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
