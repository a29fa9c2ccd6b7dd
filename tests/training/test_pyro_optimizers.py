"""Pyro's own optimisers in ``fit``: torch's, with Pyro's arguments."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch

import pyro_vae as pv
from tests.support.foreign import Vae, X

STEPS: dict[str, Any] = {"num_steps": 4, "batch_size": 3, "progress": False, "device": "cpu"}


def trained(optimizer: Any, **options: Any) -> Vae:
    v = Vae()
    pv.fit(v.model, v.guide, X, "Trace_ELBO", optimizer=optimizer, **STEPS, **options)
    return v


@pytest.mark.parametrize(
    ("pyros", "torchs"),
    [
        (
            pyro.optim.Adam({"lr": 0.02, "betas": (0.8, 0.99)}),
            lambda ps: torch.optim.Adam(ps, lr=0.02, betas=(0.8, 0.99)),
        ),
        (pyro.optim.SGD({"lr": 0.1, "momentum": 0.9}), lambda ps: torch.optim.SGD(ps, 0.1, 0.9)),
        (
            pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 0.3}),
            lambda ps: pyro.optim.clipped_adam.ClippedAdam(ps, lr=0.02, clip_norm=0.3),
        ),
    ],
)
def test_the_step_is_torchs(pyros: Any, torchs: Any) -> None:
    for own, other in zip(trained(pyros).parameters(), trained(torchs).parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_a_function_is_asked_by_the_names_that_pyro_gives() -> None:
    names = []

    def arguments(name: str) -> dict[str, float]:
        names.append(name)
        return {"lr": 0.0 if name == "vae.w" else 0.02}

    v, start = trained(pyro.optim.Adam(arguments)), Vae()
    assert sorted(names) == ["vae.b", "vae.encoder.bias", "vae.encoder.weight", "vae.w"]
    assert torch.equal(v.w, start.w) and not torch.equal(v.b, start.b)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99}), "lrd=0.99 .* schedule="),
        (pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 1.0}), "grad_clip="),
        (pyro.optim.Adam(lambda module, name: {"lr": 0.1}), "a function of one name"),
        (pyro.optim.AdagradRMSProp({"eta": 0.1}), "no learning rate 'lr'"),
        (
            pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.1}
            ),
            "a scheduler of Pyro:.*schedule=",
        ),
    ],
)
def test_what_fit_has_an_option_for_is_said(optimizer: Any, words: str) -> None:
    with pytest.raises(pv.UserError, match=words):
        trained(optimizer)
