"""The base class of networks, and the choice of one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from pyro_vae.choices import lookup, registry
from pyro_vae.errors import UserError
from pyro_vae.nn.missing import check_missing
from pyro_vae.validation import check_choice, check_number

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


NetSpec: TypeAlias = str | type[nn.Module] | nn.Module
"""A network as `make_encoder` and `make_decoder` take it."""

INITS = ("torch", "glorot")

OF_ONE_DIRECTION = {
    "input_scale": "encoder",
    "output_bias": "decoder",
    **dict.fromkeys(registry.OF_EVERY_NET, "encoder"),
}
"""Options that serve one side of an auto-encoder; the other side, built from the same arguments,
does without them.
"""


def activation(name: str) -> nn.Module:
    """The activation of that name; a ``UserError`` lists the known ones."""
    return ACTIVATIONS[check_choice("activation", name.lower(), ACTIVATIONS)]()


class Net(nn.Module, ABC):
    """A network from ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.

    ``encoder`` and ``decoder`` build the two directions of an auto-encoder from one set of
    arguments, written in the encoder's order: a decoder reverses them.

    Args:
        in_shape: the shape of an input: of an image, or ``(numbers,)``.
        out_shape: the shape of an output.
    """

    slot: ClassVar[str] = "net"
    input_scale: float = 1.0
    output_bias: str | None = None

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = torch.Size(in_shape), torch.Size(out_shape)

    @classmethod
    def encoder(cls, in_shape: tuple[int, ...], num_outputs: int, **args: Any) -> Net:
        """From an image to ``num_outputs`` numbers."""
        return cls(in_shape, (num_outputs,), **args)

    @classmethod
    def decoder(cls, num_inputs: int, out_shape: tuple[int, ...], **args: Any) -> Net:
        """From ``num_inputs`` numbers to an image."""
        return cls((num_inputs,), out_shape, **args)

    @abstractmethod
    def transform(self, rows: Tensor) -> Tensor:
        """``(rows, *in_shape)`` to ``(rows, numel(out_shape))`` or ``(rows, *out_shape)``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, *in_shape)`` to ``(*batch, *out_shape)``; the batch dimensions are rows to the
        network.
        """
        num_event = len(self.in_shape)
        batch, event = (
            x.shape[: max(0, x.dim() - num_event)],
            x.shape[max(0, x.dim() - num_event) :],
        )
        if event != self.in_shape:
            raise UserError(
                f"{type(self).__name__} was built for inputs of shape {tuple(self.in_shape)} "
                f"after the batch dimensions, but got a tensor of shape {tuple(x.shape)}: build "
                "it with the data's event_shape and the model's latent_dim, or reshape"
            )
        rows = x.reshape(-1, *self.in_shape)
        if self.input_scale != 1:
            rows = rows / self.input_scale
        return self.transform(rows).reshape(batch + self.out_shape)

    def last_bias(self) -> Tensor:
        """The output's bias as a view, ``out_shape``: what `Likelihood.start_at_mean` sets.

        Raises:
            UserError: the network has no bias for each of its outputs.
        """
        raise UserError(
            f"{type(self).__name__} has no bias of its own for each output (last_bias): leave "
            "output_bias=mean out, or use net=MLP"
        )

    def _set_up(self, init: str, input_scale: float, output_bias: str | None) -> None:
        """Keep and apply the options that every network of this package has, its layers being
        there.
        """
        name, words = type(self).__name__, "a positive number, such as 255 for 8-bit levels"
        check_choice(f"init of {name}", init, INITS)
        check_number(f"{name}(input_scale={{!r}})", input_scale, words, ends="()")
        if output_bias is not None:
            check_choice(f"output_bias of {name}", output_bias, ["mean"])
        self.input_scale, self.output_bias = float(input_scale), output_bias
        if init == "glorot":
            glorot(self)


class Ready(Net):
    """A network that is built already, of a class of one's own: rows to rows.

    Args:
        module: maps ``(rows, *in_shape)`` to ``(rows, *out_shape)``.
        in_shape: what it is given.
        out_shape: what it is to give.
    """

    def __init__(
        self, module: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.module = module

    def transform(self, rows: Tensor) -> Tensor:
        """``(rows, *in_shape)`` to ``(rows, *out_shape)``; a ``UserError`` for other shapes."""
        outputs: Tensor = self.module(rows)
        if outputs.shape not in ((len(rows), *self.out_shape), (len(rows), self.out_shape.numel())):
            raise UserError(
                f"net, a {type(self.module).__name__}, maps {tuple(rows.shape)} to "
                f"{tuple(outputs.shape)}: expected {(len(rows), *self.out_shape)}"
            )
        return outputs


class SeenOnly(Net):
    """A network of images with missing entries, which gets 0 in the place of each NaN.

    Args:
        net: the network itself.
        in_shape: the shape of an image.
        mask_channel: whether ``net`` also gets the mask, 1 where an entry is there, laid behind the
            image along its first dimension.
    """

    def __init__(self, net: Net, in_shape: tuple[int, ...], mask_channel: bool) -> None:
        super().__init__(in_shape, net.out_shape)
        self.net, self.mask_channel = net, mask_channel
        self.input_scale, net.input_scale = net.input_scale, 1.0  # of the image alone

    def transform(self, rows: Tensor) -> Tensor:
        """``(rows, *in_shape)`` to ``(rows, *out_shape)``."""
        seen = ~rows.isnan()
        given = torch.where(seen, rows, 0.0)
        if self.mask_channel:
            given = torch.cat((given, seen.to(given)), 1)
        outputs: Tensor = self.net(given)
        return outputs


@torch.no_grad()
def glorot(net: nn.Module) -> None:
    """Weights uniform with variance 2 / (fan in + fan out), biases 0 (Glorot & Bengio 2010,
    equation 16), in place.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_widths(part: str, name: str, widths: Any) -> tuple[int, ...]:
    """``widths`` as a tuple of whole numbers, 1 or more; a single number is one layer."""
    listed = (widths,) if isinstance(widths, int) else widths
    if not isinstance(listed, tuple | list) or any(
        isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in listed
    ):
        raise UserError(
            f"{part}({name}={widths!r}): expected whole numbers from 1, such as {name}=(200, 200)"
        )
    return tuple(listed)


def unpacked(net: NetSpec, args: Mapping[str, Any]) -> tuple[NetSpec, dict[str, Any]]:
    """``"MLP(hidden=(200,))"`` as ``"MLP"`` and its arguments, besides ``args``; a class serves too."""
    given = {**args, "net": net}
    if isinstance(net, type) or (isinstance(net, str) and "(" not in net):
        given = {"net": registry.Choice(net, (), dict(args))}  # type: ignore[arg-type]
    rest = registry.unpack_net("net", given)
    return rest.pop("net"), rest


def _built(direction: str, net: NetSpec, args: Mapping[str, Any], inputs: Any, outputs: Any) -> Net:
    net, args = unpacked(net, args)
    own = {k: v for k, v in args.items() if OF_ONE_DIRECTION.get(k, direction) == direction}
    missing, mask_channel = (own.pop(name, None) for name in registry.OF_EVERY_NET)
    if check_missing(missing):
        shape = (inputs[0] * (2 if mask_channel else 1), *inputs[1:])
        return SeenOnly(_built(direction, net, own, shape, outputs), inputs, bool(mask_channel))
    if isinstance(net, nn.Module):
        return _ready(net, own, inputs, outputs)
    part: Any = lookup.resolve("net", net) if isinstance(net, str) else net
    if not isinstance(part, type) or not hasattr(part, direction):
        what = f"the class {part.__name__}" if isinstance(part, type) else repr(part)[:60]
        raise UserError(
            f"net is {what}: expected a name such as 'Conv', a call such as "
            "'MLP(hidden=(200,))', a subclass of pyro_vae.nn.Net, or an nn.Module that is "
            "already built"
        )
    sizes = (inputs, outputs[0]) if direction == "encoder" else (inputs[0], outputs)
    built: Net = getattr(part, direction)(*sizes, **own)
    return built


def _ready(net: nn.Module, args: Mapping[str, Any], inputs: Any, outputs: Any) -> Net:
    if args:
        raise UserError(
            f"{next(iter(args))} is given together with a network that is already built "
            f"({type(net).__name__}): leave it out, or give net by its name or class"
        )
    if not isinstance(net, Net):
        return Ready(net, inputs, outputs)
    if (net.in_shape, net.out_shape) != (inputs, outputs):
        raise UserError(
            f"net is a {type(net).__name__} from {tuple(net.in_shape)} to "
            f"{tuple(net.out_shape)}, but one from {tuple(inputs)} to {tuple(outputs)} is "
            "needed: build it for these shapes"
        )
    return net


def _image_shape(event_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(event_shape)
    if not shape or prod(shape) == 0:
        raise UserError(
            f"event_shape {shape} has no pixels: give the shape of one image, such as (1, 28, 28)"
        )
    return shape


def make_encoder(net: NetSpec, event_shape: tuple[int, ...], num_outputs: int, **args: Any) -> Net:
    """The encoder side of a network, ``event_shape`` to ``(num_outputs,)``.

    Args:
        net: a registered name, a call of one such as ``"MLP(hidden=(200,))"``, a class with
            ``encoder`` and ``decoder`` (a `Net`), or an ``nn.Module`` that is ready, which maps
            ``(rows, *event_shape)`` to ``(rows, num_outputs)``.
        event_shape: that of an image.
        num_outputs: how many numbers an image is mapped to.
        **args: the network's own arguments; those of the other side are passed over. Every network
            takes ``missing="nan"`` (0 in the place of each NaN) and ``mask_channel`` (the mask as
            a further input).

    Returns:
        A network of any number of batch dimensions; one that is ready is part of it.

    Raises:
        UserError: no such network; arguments together with one that is ready, or one of other
            shapes.
    """
    return _built("encoder", net, args, _image_shape(event_shape), (num_outputs,))


def make_decoder(
    net: NetSpec, latent_dim: int, event_shape: tuple[int, ...], per_pixel: int, **args: Any
) -> Net:
    """The decoder side of a network, ``(latent_dim,)`` to ``per_pixel`` numbers a pixel.

    Args:
        net: as of `make_encoder`; one that is ready maps ``(rows, latent_dim)`` to ``(rows,
            per_pixel · C, …)``, an image's first dimension being C.
        latent_dim: how many numbers it decodes.
        event_shape: that of an image.
        per_pixel: numbers for each pixel, which are laid along the first event dimension.
        **args: the network's own arguments; those of the other side are passed over.

    Returns:
        As `make_encoder`.

    Raises:
        UserError: as `make_encoder`.
    """
    first, *rest = _image_shape(event_shape)
    return _built("decoder", net, args, (latent_dim,), (per_pixel * first, *rest))
