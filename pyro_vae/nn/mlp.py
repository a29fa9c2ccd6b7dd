"""Multi-layer perceptron."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from pyro_vae.nn.net import Net, activation, check_widths


class MLP(Net):
    """Fully connected layers: ``hidden`` widths in the encoder's order, one ``activation`` (tanh,
    relu, softplus, silu).

    ``hidden=()`` is a linear map. ``init`` is ``torch`` or ``glorot`` (Glorot & Bengio 2010:
    uniform weights, biases 0). ``output_bias=mean`` starts a decoder at the training mean (Burda et
    al. 2016): the command line does so, in Python `Likelihood.start_at_mean` does. An encoder
    divides its input by ``input_scale``: 255 for 8-bit levels.

    Args:
        in_shape: the shape of an input: of an image, or ``(numbers,)``.
        out_shape: the shape of an output.
        hidden: widths of the hidden layers, in the encoder's order.
        activation: the name of the function between layers.
        init: ``torch`` (torch's own) or ``glorot``.
        input_scale: what an encoder divides its input by: 255 for 8-bit levels.
        output_bias: ``mean`` starts a decoder at the training images' mean; None does not.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        hidden: tuple[int, ...] = (500, 500),
        activation: str = "silu",
        init: str = "torch",
        input_scale: float = 1.0,
        output_bias: str | None = None,
    ) -> None:
        super().__init__(in_shape, out_shape)
        widths = check_widths("MLP", "hidden", hidden)
        self.layers = _perceptron((prod(in_shape), *widths, prod(out_shape)), activation)
        self._set_up(init, input_scale, output_bias)

    @classmethod
    def decoder(cls, num_inputs: int, out_shape: tuple[int, ...], **args: Any) -> Net:
        """The same widths, reversed."""
        if isinstance(args.get("hidden"), tuple | list):
            args["hidden"] = tuple(reversed(args["hidden"]))
        return cls((num_inputs,), out_shape, **args)

    def transform(self, rows: Tensor) -> Tensor:
        """``(rows, *in_shape)`` to ``(rows, numel(out_shape))``."""
        outputs: Tensor = self.layers(rows.flatten(1))
        return outputs

    def last_bias(self) -> Tensor:
        """The last layer's bias, ``out_shape``."""
        bias: Tensor = self.layers[-1].bias  # type: ignore[assignment]
        return bias.view(self.out_shape)


def _perceptron(widths: tuple[int, ...], name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation(name)]
    return nn.Sequential(*layers[:-1])
