"""Networks: any number of batch dimensions, exact sizes, a decoder that mirrors its encoder, clear
refusals.
"""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.nn import MLP, Conv, Net, make_decoder, make_encoder
from pyro_vae.nn.net import ACTIVATIONS
from tests.support.grids import thinned

SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 17, 23), (2, 2, 2), (1, 2, 9), (4, 5, 64)]
NETS: dict[str, dict[str, Any]] = {"MLP": {"hidden": (6, 5)}, "Conv": {}}


def small(net: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Arguments that keep a test's network small."""
    return (
        {"hidden": (6, 5)}
        if net == "MLP"
        else {"channels": (3, 4)[: max(1, min(shape[1:]).bit_length() - 1)]}
    )


@pytest.mark.parametrize(
    ("batch", "shape", "net"), thinned([(), (3,), (2, 3), (4, 1, 3)], SHAPES, NETS)
)
def test_batch_dimensions_are_rows(
    net: str, shape: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    """``(*batch, *in_shape)`` to ``(*batch, *out_shape)``, each row by itself."""
    torch.manual_seed(0)
    encoder = make_encoder(net, shape, 7, **small(net, shape)).eval()
    decoder = make_decoder(net, 7, shape, 2, **small(net, shape)).eval()
    x = torch.rand(*batch, *shape)
    with torch.no_grad():
        eta = encoder(x)
        image = decoder(eta)
        assert eta.shape == (*batch, 7) and image.shape == (*batch, 2 * shape[0], *shape[1:])
        rows = x.reshape(-1, *shape)
        one = torch.stack([encoder(row) for row in rows]).reshape(eta.shape)
        torch.testing.assert_close(eta, one, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            image[(0,) * len(batch)], decoder(one[(0,) * len(batch)]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 17, 23)])
def test_the_default_conv_restores_every_size(shape: tuple[int, ...]) -> None:
    encoder, decoder = Conv.encoder(shape, 4).eval(), Conv.decoder(4, shape).eval()
    with torch.no_grad():
        assert decoder(encoder(torch.rand(2, *shape))).shape == (2, *shape)


def test_the_default_conv_is_the_textbook_one() -> None:
    """32, 64, 128, 256, 512 channels at 3×32×32, stride-2 3×3 convolutions, BatchNorm, LeakyReLU."""
    layers = list(Conv.encoder((3, 32, 32), 10).layers)  # type: ignore[arg-type]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 256, 512]
    assert all(c.stride == (2, 2) and c.kernel_size == (3, 3) for c in convolutions)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 5
    assert sum(isinstance(layer, nn.LeakyReLU) for layer in layers) == 5


def widths(net: Net) -> list[tuple[int, int]]:
    """The linear layers' sizes."""
    return [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]


def test_a_decoder_reverses_the_widths() -> None:
    assert widths(make_encoder("MLP", (3, 4), 5, hidden=(20, 10))) == [(12, 20), (20, 10), (10, 5)]
    assert widths(make_decoder("MLP", 5, (3, 4), 1, hidden=(20, 10))) == [
        (5, 10),
        (10, 20),
        (20, 12),
    ]
    up = [
        m
        for m in make_decoder("Conv", 5, (3, 16, 16), 1, channels=(4, 8, 9)).modules()
        if isinstance(m, nn.ConvTranspose2d)
    ]
    assert [m.in_channels for m in up] == [9, 8, 4]


def test_no_hidden_layer_is_a_linear_map() -> None:
    net = make_encoder("MLP", (3, 4), 5, hidden=())
    weight, bias = net.parameters()
    x = torch.rand(6, 3, 4)
    torch.testing.assert_close(net(x), x.flatten(1) @ weight.T + bias)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("spelled", [str.lower, str.title])
def test_activations_have_names(name: str, spelled: Any) -> None:
    net = make_encoder("MLP", (4,), 2, hidden=(3, 3), activation=spelled(name))
    assert sum(type(m) is ACTIVATIONS[name] for m in net.modules()) == 2


def test_a_class_is_a_network_too() -> None:
    class Mine(Net):
        def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
            super().__init__(in_shape, out_shape)
            self.linear = nn.Linear(prod(in_shape), prod(out_shape))

        def transform(self, rows: Tensor) -> Tensor:
            """One layer."""
            output: Tensor = self.linear(rows.flatten(1))
            return output

    assert make_decoder(Mine, 3, (2, 4), 2)(torch.rand(5, 6, 3)).shape == (5, 6, 4, 4)


@pytest.mark.parametrize(
    "net",
    [
        MLP.encoder((3, 4), 5),
        Conv.encoder((1, 8, 8), 5),
        MLP.decoder(3, (2, 2)),
        Conv.decoder(3, (1, 8, 8)),
    ],
)
def test_every_parameter_has_a_gradient(net: Net) -> None:
    net(torch.rand(4, *net.in_shape)).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Conv.encoder((784,), 5), ("(784,)", "net=MLP")),
        (lambda: Conv.decoder(5, (28, 28)), ("(28, 28)", "net=MLP")),
        (lambda: Conv.encoder((1, 1, 9), 5), ("(1, 1, 9)", "2 pixels")),
        (lambda: Conv.encoder((1, 8, 8), 5, channels=(4, 4, 4, 4)), ("8×8", "1 to 3")),
        (lambda: Conv.encoder((1, 8, 8), 5, channels=()), ("channels=()", "1 to 3")),
        (lambda: Conv.encoder((1, 8, 8), 5, channels=(4, 0)), ("channels=(4, 0)",)),
        (lambda: MLP.encoder((4,), 5, hidden=(3.5,)), ("hidden=(3.5,)",)),
        (lambda: MLP.encoder((4,), 5, hidden=(-3,)), ("hidden=(-3,)",)),
        (lambda: MLP.decoder(4, (5,), hidden="wide"), ("hidden='wide'",)),
        (lambda: MLP.encoder((4,), 5, activation="rellu"), ("did you mean 'relu'",)),
        (lambda: make_encoder("MPL", (4,), 5), ("did you mean 'MLP'",)),
        (lambda: make_decoder("MLP", 4, (), 1), ("()",)),
        (lambda: make_decoder("MLP", 4, (3, 0), 1), ("(3, 0)",)),
        (lambda: MLP.encoder((4,), 5)(torch.rand(3, 5)), ("(4,)", "(3, 5)")),
        (lambda: Conv.encoder((1, 8, 8), 5)(torch.rand(3, 1, 8, 9)), ("(1, 8, 8)", "(3, 1, 8, 9)")),
    ],
)
def test_refusals_are_a_line(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        make()
    line = str(error.value)
    assert "\n" not in line and [word for word in words if word not in line] == []


# ---- initialisation


@pytest.mark.parametrize(
    "make", [make_encoder, lambda *a, **k: make_decoder(a[0], a[2], a[1], 1, **k)]
)
@pytest.mark.parametrize("net", NETS)
def test_glorot_has_the_papers_variance_and_no_bias(net: str, make: Any) -> None:
    """Var W = 2 / (fan in + fan out), uniform: no weight beyond √(6 / (fan in + fan out)), some
    beyond 0.95 of it.
    """
    torch.manual_seed(0)
    built = make(
        net,
        (1, 16, 16),
        40,
        init="glorot",
        **({"hidden": (60, 50)} if net == "MLP" else {"channels": (8, 16)}),
    )
    layers = [
        m for m in built.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    for layer in layers:
        field = layer.weight[0, 0].numel()
        bound = (6 / (field * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound * (1 + 1e-6)
        spread = float(layer.weight.detach().var()) / (
            bound**2 / 3
        )  # a uniform's sample variance has a relative error √(0.8 / n)
        assert abs(spread - 1) < 5 * (0.8 / layer.weight.numel()) ** 0.5
        assert layer.bias is None or not bool(layer.bias.any())
    assert len(layers) == (3 if net == "MLP" else len(layers))


@pytest.mark.parametrize("net", NETS)
def test_the_default_initialisation_is_torchs(net: str) -> None:
    """The same numbers from the same seed, with or without the options being written."""
    states = []
    for given in ({}, {"init": "torch", "input_scale": 1.0, "output_bias": None}):
        torch.manual_seed(0)
        states.append(
            make_decoder(net, 3, (1, 8, 8), 1, **small(net, (1, 8, 8)), **given).state_dict()
        )
    assert all(
        torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True)
    )


@pytest.mark.parametrize("net", NETS)
def test_options_of_one_direction_leave_the_other_alone(net: str) -> None:
    given = {"input_scale": 16, "output_bias": "mean", **small(net, (1, 8, 8))}
    encoder, decoder = (
        make_encoder(net, (1, 8, 8), 3, **given),
        make_decoder(net, 3, (1, 8, 8), 2, **given),
    )
    assert (encoder.input_scale, encoder.output_bias) == (16, None) and (
        decoder.input_scale,
        decoder.output_bias,
    ) == (
        1,
        "mean",
    )
    assert decoder.last_bias().shape == (2, 8, 8)
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(encoder.eval()(x), encoder.transform(x / 16))


@pytest.mark.parametrize("net", NETS)
def test_the_last_bias_is_added_to_each_output(net: str) -> None:
    decoder = make_decoder(net, 3, (1, 8, 8), 1, output_bias="mean", **small(net, (1, 8, 8))).eval()
    z, shift = torch.randn(5, 3), torch.randn(1, 8, 8)
    before = decoder(z)
    with torch.no_grad():
        decoder.last_bias().add_(shift)
    torch.testing.assert_close(decoder(z), before + shift)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"init": "glorott"}, "did you mean 'glorot'"),
        ({"output_bias": "meen"}, "did you mean 'mean'"),
        ({"input_scale": 0}, "input_scale=0"),
        ({"input_scale": "16"}, "input_scale='16'"),
    ],
)
def test_unknown_options_are_a_line(given: dict[str, Any], words: str) -> None:
    for net in (MLP, Conv):
        with pytest.raises(UserError, match=words):
            net((1, 8, 8), (3,), **given)
