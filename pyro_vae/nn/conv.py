"""Convolutional network: each layer halves the image, or doubles it."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.nn.net import Net, activation, check_widths

DEFAULT_CHANNELS = (32, 64, 128, 256, 512)


def _sizes(
    shape: tuple[int, ...], channels: tuple[int, ...] | None
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The channels to use and the image's size before and after each stride-2 layer."""
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise UserError(
            "Conv needs images (channels, height, width) with sides of 2 pixels or more, but "
            f"got shape {tuple(shape)}: use net=MLP, or reshape the data"
        )
    size = (shape[1], shape[2])
    most = ceil(log2(min(size)))  # halvings, rounded up, until one side is a single pixel
    channels = (
        DEFAULT_CHANNELS[:most] if channels is None else check_widths("Conv", "channels", channels)
    )
    if not 1 <= len(channels) <= most:
        raise UserError(
            f"Conv with channels={channels} halves the image {len(channels)} times, but images of "
            f"{size[0]}×{size[1]} can be halved 1 to {most} times: give between 1 and {most} "
            "channels"
        )
    sizes = [size]
    for _ in channels:
        sizes.append((ceil(sizes[-1][0] / 2), ceil(sizes[-1][1] / 2)))
    return channels, sizes


class Conv(Net):
    """Stride-2 3×3 convolutions with BatchNorm, ``channels`` wide (32…512 at 32×32), then one
    linear layer.

    The decoder mirrors it with transposed convolutions and ends in a plain 3×3 convolution. Any
    image with sides of 2 pixels or more; sizes that are not powers of two are halved rounding up,
    and restored exactly. ``init``, ``input_scale`` and ``output_bias`` are those of `MLP`; with
    ``output_bias=mean`` the decoder's last bias has one entry for each output, where it otherwise
    has one for each channel.

    Args:
        in_shape: the shape of an input: of an image, or ``(numbers,)``.
        out_shape: the shape of an output.
        channels: widths of the layers, from the image inwards; by default 32, 64, … as often as it
            can be halved.
        activation: the name of the function between layers.
        init: ``torch`` (torch's own) or ``glorot``.
        input_scale: what an encoder divides its input by: 255 for 8-bit levels.
        output_bias: ``mean`` starts a decoder at the training images' mean; None does not.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        channels: tuple[int, ...] | None = None,
        activation: str = "leaky_relu",
        init: str = "torch",
        input_scale: float = 1.0,
        output_bias: str | None = None,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if len(in_shape) == 3:
            self.layers = _downwards(tuple(in_shape), tuple(out_shape), channels, activation)
        else:
            self.layers = _upwards(
                tuple(in_shape), tuple(out_shape), channels, activation, output_bias is not None
            )
        self._set_up(init, input_scale, output_bias)

    @classmethod
    def encoder(cls, in_shape: tuple[int, ...], num_outputs: int, **args: Any) -> Net:
        """From ``(channels, height, width)`` to ``num_outputs`` numbers."""
        _sizes(in_shape, args.get("channels"))
        return cls(in_shape, (num_outputs,), **args)

    def transform(self, rows: Tensor) -> Tensor:
        """``(rows, *in_shape)`` to ``(rows, *out_shape)``."""
        outputs: Tensor = self.layers(rows)
        return outputs

    def last_bias(self) -> Tensor:
        """The last layer's bias, ``out_shape``; a ``UserError`` where it has one entry for each
        channel alone.
        """
        last = self.layers[-1]
        if not isinstance(last, Bias):
            raise UserError(
                "this Conv's last layer has one bias a channel: build it with output_bias=mean"
            )
        return last.bias


class Bias(nn.Module):
    """x + b, with an entry of b for each entry of one image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """``(rows, *shape)``."""
        return x + self.bias


def _downwards(
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    channels: tuple[int, ...] | None,
    name: str,
) -> nn.Sequential:
    channels, sizes = _sizes(in_shape, channels)
    layers: list[nn.Module] = []
    for before, after in pairwise((in_shape[0], *channels)):
        # BatchNorm has a shift of its own, so the convolution's bias would be a dead parameter
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            activation(name),
        ]
    features = channels[-1] * sizes[-1][0] * sizes[-1][1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, out_shape[0]))


def _upwards(
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    channels: tuple[int, ...] | None,
    name: str,
    bias_each: bool = False,
) -> nn.Sequential:
    channels, sizes = _sizes(out_shape, channels)
    widths, heights = tuple(reversed(channels)), list(reversed(sizes))
    layers: list[nn.Module] = [
        nn.Linear(in_shape[0], widths[0] * heights[0][0] * heights[0][1]),
        nn.Unflatten(1, (widths[0], *heights[0])),
    ]
    for before, after, small, large in zip(
        widths, (*widths[1:], widths[-1]), heights, heights[1:], strict=False
    ):
        # a doubled side is 2s − 1 pixels, plus the padding that restores the size which was halved
        padding = tuple(big - (2 * tiny - 1) for tiny, big in zip(small, large, strict=True))
        up = nn.ConvTranspose2d(
            before,
            after,
            3,
            stride=2,
            padding=1,
            bias=False,
            output_padding=padding,  # type: ignore[arg-type]
        )
        layers += [up, nn.BatchNorm2d(after), activation(name)]
    last = nn.Conv2d(widths[-1], out_shape[0], 3, padding=1, bias=not bias_each)
    return nn.Sequential(*layers, last, *([Bias(out_shape)] if bias_each else []))
