"""What is known of a pair lives as long as its programs, no longer and no shorter, and belongs to
these very programs.
"""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import check_pair, encode, fit, log_marginal, log_weights
from pyro_vae.errors import UserError
from pyro_vae.pair.runtime import Pair
from tests.support.pairs import FORMS, LATENT, Decoder, Encoder, TutorialVAE, binary_images, fresh

X = binary_images()
QUICK: dict[str, Any] = {
    "progress": False,
    "device": "cpu",
    "batch_size": 16,
    "num_steps": 2,
    "compile": "off",
}


@pytest.fixture(autouse=True, scope="module")
def what_other_tests_left_is_aside() -> None:
    """It is no matter of these tests, and each collection would walk it."""
    gc.freeze()


def owner(program: Any) -> Any:
    """The object of a method, the program itself elsewhere."""
    return getattr(program, "__self__", program)


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_goes_with_its_programs(form: str) -> None:
    """After training and evaluation, staged ones too."""
    alive, tier = [], "graph" if form in ("closures", "PyroModules") else "off"
    for seed in range(2):
        model, guide = fresh(form, seed)
        fit(model, guide, X, **{**QUICK, "compile": tier})
        log_marginal(model, guide, X, num_samples=5, device="cpu", compile=tier)
        encode(model, guide, X[:8])
        log_weights(model, guide, X)
        alive += [weakref.ref(owner(program)) for program in (model, guide)]
        alive += [weakref.ref(parameter) for parameter in Pair.of(model, guide).tensors()]
    del model, guide
    gc.collect()
    assert [each() for each in alive if each() is not None] == []


def test_a_guide_does_not_keep_the_models_that_it_served() -> None:
    guide, alive = fresh("closures")[1], []
    for seed in range(3):
        model = fresh("PyroModules", seed)[0]
        log_weights(model, guide, X)
        alive.append(weakref.ref(model))
    del model
    gc.collect()
    assert not any(each() for each in alive)


def test_what_was_trained_is_there_when_nobody_holds_the_pair() -> None:
    model, guide = fresh("functions")
    fit(model, guide, X, **QUICK)
    gc.collect()
    options: dict[str, Any] = {"num_samples": 20, "device": "cpu", "compile": "off"}
    before = log_marginal(model, guide, X, **options).log_px
    gc.collect()
    assert torch.equal(before, log_marginal(model, guide, X, **options).log_px)
    assert set(Pair.of(model, guide).store.parameters) == {"shift", "widen"}


def test_a_new_program_in_the_place_of_one_that_is_gone_is_new() -> None:
    """Identities are given again once their owners are gone."""

    def pair(site: str) -> tuple[Any, Any]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample(site, dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(torch.zeros(x.shape[1:]), 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample(site, dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))

        return model, guide

    for number in range(5):
        programs = pair(f"z{number}")
        assert Pair.of(*programs).structure(X, {}).latents == (f"z{number}",)
        del programs
        gc.collect()


def test_two_pairs_of_one_guide_have_parameters_of_their_own() -> None:
    (model, guide), (other, _) = fresh("functions", 0), fresh("functions", 1)
    fit(model, guide, X, **QUICK)
    with pytest.raises(UserError, match="does not exist yet"):
        log_weights(other, guide, X)
    fit(other, guide, X, learning_rate=0.3, **QUICK)
    mine, theirs = (Pair.of(each, guide).store.parameters["widen"] for each in (model, other))
    assert not torch.equal(mine, theirs)


class Scaled(nn.Module):
    """A class whose model is written later."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = Decoder(), Encoder()

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


def times(factor: float) -> Any:
    """A method of its own, whose name is always the same."""

    def model(self: Any, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=factor * self.decoder(z)).to_event(1), obs=x)

    return model


@pytest.mark.parametrize("how", ["bound", "defined anew"])
def test_a_method_is_known_by_its_function(how: str) -> None:
    """Not by its name: two functions bound to one object, or a method that a notebook's cell
    defines again.
    """
    v, found, expected = Scaled(), [], []
    for factor in (1.0, 4.0, 1.0, -3.0):
        if how == "bound":
            model = types.MethodType(times(factor), v)
        else:
            Scaled.model = times(factor)  # type: ignore[attr-defined]
            model = v.model
        for results, programs in (
            (found, (model, v.guide)),
            (expected, (times(factor).__get__(v), v.guide)),
        ):
            torch.manual_seed(0)
            results.append(log_weights(*programs, X, 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_method_under_pyros_decorator_is_the_same_at_each_access() -> None:
    class Decorated(TutorialVAE):
        @pyro.poutine.mask(mask=True)
        def guide(self, x: Tensor) -> None:
            """q(z | x), with a parameter of its own."""
            loc, scale = self.encoder(x)
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "latent",
                    dist.Normal(loc, scale * pyro.param("widen", torch.tensor(1.0)).exp()).to_event(
                        1
                    ),
                )

    v = Decorated()
    assert str(check_pair(v.model, v.guide, X)).startswith(
        "observed sites: obs; latent sites: latent"
    )
    fit(v.model, v.guide, X, **QUICK)
    assert Pair.of(v.model, v.guide).guide.owner is v
    assert log_weights(v.model, v.guide, X).shape == (1, len(X))  # its parameter is found again
