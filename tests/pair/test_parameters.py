"""What was trained, of a pair in any form: read, kept, put back, handed to Pyro; a file of another
pair is refused whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_vae as pv
from tests.support.pairs import FORMS, LATENT, Decoder, Encoder, Guide, binary_images, fresh

X = binary_images(24)
QUICK: dict[str, Any] = {
    "num_steps": 3,
    "progress": False,
    "learning_rate": 0.05,
    "seed": 1,
    "compile": "off",
}


def with_a_buffer() -> tuple[Any, Any]:
    """A list of networks that only a run meets, BatchNorm's averages, and a partial's network."""
    nets = [Encoder(), nn.BatchNorm1d(12)]

    def model(decoder: nn.Module, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        encoder, norm = nets
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(norm(x))).to_event(1))

    return partial(model, Decoder()), guide


MADE: dict[str, Callable[[int], tuple[Any, Any]]] = {
    **{form: partial(fresh, form) for form in FORMS},
    "met by a run": lambda seed: (torch.manual_seed(seed), with_a_buffer())[1],
}


@pytest.mark.parametrize("form", MADE)
def test_what_was_trained_comes_back(form: str, tmp_path: Path) -> None:
    """Names and values of a second pair, made anew, are those of the first; so is its log p(x)."""
    first, second = MADE[form](0), MADE[form](1)
    pv.fit(*first, X, **QUICK)
    path = pv.save_parameters(tmp_path / "pair.safetensors", *first)
    if form == "met by a run":
        with pytest.raises(pv.UserError, match="check_pair"):
            pv.load_parameters(path, *second)
        pv.check_pair(*second, X)
    pv.load_parameters(path, *second)
    scores = [
        pv.log_marginal(*pair, X, num_samples=50, compile="off").log_px for pair in (first, second)
    ]
    assert torch.equal(*scores)
    ours, theirs = pv.parameters(*first), pv.parameters(*second)
    assert ours.keys() == theirs.keys() and len(ours) >= 10
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert [each.name for each in tmp_path.iterdir()] == ["pair.safetensors"]


def test_names_and_constrained_values() -> None:
    names = {form: pv.parameters(*run(MADE[form](0))) for form in ("PyroModules", *FORMS)}
    assert "model.net.layers.0.weight" in names["PyroModules"]
    assert "guide.net.hidden.weight" in names["PyroModules"]
    assert "decoder.layers.0.weight" in names["bound methods"]
    assert {"shift", "widen", "model.decoder.layers.0.weight"} <= names["functions"].keys()
    assert float(names["functions"]["widen"]) == pytest.approx(0.9)
    assert float(names["PyroParams"]["guide.scale"]) == pytest.approx(0.7)
    assert not any(name.endswith("_unconstrained") for name in names["PyroParams"])
    values = pv.parameters(*(pair := run(MADE["PyroModules"](0))))
    values["model.net.layers.0.weight"].zero_()  # a copy: the pair keeps its own
    assert pair[0].net.layers[0].weight.abs().sum() > 0


def run(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair, having run once."""
    pv.check_pair(*pair, X)
    return pair


@pytest.mark.parametrize("form", ["bound methods", "functions"])
def test_pyros_store_is_filled_on_request(form: str) -> None:
    """Stock Pyro then runs the pair at what was trained: its ELBO is ours, in the same noise."""
    pair = MADE[form](0)
    pv.fit(*pair, X, **QUICK)
    pyro.clear_param_store()
    assert not list(pyro.get_param_store())
    pv.parameters(*pair, fill_store=True)
    store = pyro.get_param_store()
    if form == "bound methods":
        assert set(store) == {
            f"{net}$$${name}"
            for net, module in (("encoder", Encoder()), ("decoder", Decoder()))
            for name, _ in module.named_parameters()
        }
    else:
        assert {"shift", "widen"} <= set(store)
        assert torch.equal(store["widen"], pv.parameters(*pair)["widen"])
    pyro.clear_param_store()


def test_names_that_pyro_confuses_are_refused() -> None:
    decoder, encoder = nn.Linear(LATENT, 12), nn.Linear(12, LATENT)

    def model(x: Tensor) -> None:
        pyro.module("net", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    with pytest.raises(pv.UserError, match="both called"):
        pv.parameters(*run((model, guide)), fill_store=True)


def test_a_pair_without_parameters_is_told() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 12]).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), pyro.param("s", torch.tensor(1.0))))

    with pytest.raises(pv.UserError, match=r"no parameter .* check_pair"):
        pv.parameters(model, guide)
    run((model, guide))
    assert list(pv.parameters(model, guide)) == ["s"]


# ---- other pairs and damaged files: nothing is changed


def saved(tmp_path: Path, form: str = "functions") -> Path:
    """A trained pair's file."""
    pair = MADE[form](0)
    pv.fit(*pair, X, **QUICK)
    return pv.save_parameters(tmp_path / "pair.safetensors", *pair)


def test_another_pair_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path, "PyroModules")
    model, _ = MADE["PyroModules"](1)
    before = pv.parameters(model, wide := Guide(latent_dim=3))
    with pytest.raises(pv.UserError, match=r"'guide\.net\.l.*' has shape \(2,.* there and \(3,"):
        pv.load_parameters(path, model, wide)
    after = pv.parameters(model, wide)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(pv.UserError, match="lacks 'decoder"):
        pv.load_parameters(path, *MADE["bound methods"](0))
    model, guide = (each.double() for each in MADE["PyroModules"](1))
    with pytest.raises(pv.UserError, match=r"has dtype torch\.float32 there and torch\.float64"):
        pv.load_parameters(path, model, guide)


def param_pair(name: str, constraint: Any) -> tuple[Any, Any]:
    """One pyro.param of this name."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(12), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param(name, torch.tensor(0.5), constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    ("name", "constraint", "words"),
    [
        ("other", constraints.positive, "'other'|'scale'"),
        ("scale", constraints.interval(0.0, 2.0), "'scale' has constraint .* there and Interval"),
    ],
)
def test_a_parameter_that_differs_is_named(
    name: str, constraint: Any, words: str, ran: bool, tmp_path: Path
) -> None:
    """At once where the pair has run, else when it first does."""
    first = param_pair("scale", constraints.positive)
    pv.fit(*first, X, **QUICK)
    path = pv.save_parameters(tmp_path / "pair.safetensors", *first)
    other = param_pair(name, constraint)
    if ran:
        run(other)
    with pytest.raises(pv.UserError, match=words) as error:
        pv.load_parameters(path, *other)
        pv.log_marginal(*other, X, num_samples=5)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path)
    pair = MADE["functions"](1)
    whole = path.read_bytes()
    for content, words in (
        (whole[:-5], "not written by save_parameters"),
        (b"", "not written by save_parameters"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "damaged: its SHA-256"),
    ):
        path.write_bytes(content)
        with pytest.raises(pv.UserError, match=words) as error:
            pv.load_parameters(path, *pair)
        assert "\n" not in str(error.value)
    with pytest.raises(pv.UserError, match="can't be read"):
        pv.load_parameters(tmp_path / "none", *pair)
    with pytest.raises(pv.UserError, match="can't be written"):
        pv.save_parameters(tmp_path / "no folder" / "pair", *run(pair))
