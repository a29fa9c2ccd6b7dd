"""Two parts swapped at once: every combination trains, or is refused in one sentence before anything is trained."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
import torch
from conforming import DEFAULTS, build, choices_for, every, images, labels, one_line, swaps

from pyro_vae import fit
from pyro_vae.errors import UserError

pytestmark = pytest.mark.slow

QUIET: dict[str, Any] = {"batch_size": 4, "device": "cpu", "compile": "off", "progress": False}


def trains_or_says_why_not(objective: str = DEFAULTS.objective, num_steps: int = 2, **choices: str) -> None:
    """A few steps with finite figures; or one line, with all parameters as they were."""
    try:
        model, guide = build(**choices)
    except UserError as error:
        one_line(error)
        return
    x = images(model)
    before = [tensor.clone() for tensor in (*model.parameters(), *guide.parameters())]
    try:
        history = fit(model, guide, x, objective, num_steps=num_steps, **QUIET, **labels(len(x)))
    except UserError as error:
        one_line(error)
        for tensor, old in zip((*model.parameters(), *guide.parameters()), before, strict=True):
            assert torch.equal(tensor, old)
    else:
        assert all(isfinite(value) for r in history.train for value in (r.loss, r.elbo, r.reconstruction, r.kl))


@every("objective")
@every("guide")
def test_every_objective_with_every_guide(objective: str, guide: str) -> None:
    trains_or_says_why_not(objective, 3, model=choices_for(f"guide={guide}")["model"], guide=guide)


@every("objective")
@every("model")
def test_every_objective_with_every_model(objective: str, model: str) -> None:
    trains_or_says_why_not(objective, 3, model=model, guide=choices_for(f"model={model}")["guide"])


@every("likelihood")
@every("prior")
def test_every_likelihood_with_every_prior(likelihood: str, prior: str) -> None:
    trains_or_says_why_not(likelihood=likelihood, prior=prior)


@every("likelihood")
@every("net")
def test_every_likelihood_with_every_net(likelihood: str, net: str) -> None:
    trains_or_says_why_not(likelihood=likelihood, net=net)


@every("guide")
@every("prior")
def test_every_guide_with_every_prior(guide: str, prior: str) -> None:
    choices = choices_for(f"guide={guide}")
    trains_or_says_why_not(choices["objective"], model=choices["model"], guide=guide, prior=prior)


@pytest.mark.parametrize("swap", swaps("prior", "likelihood", "net"))
@every("model")
def test_every_model_with_every_part(model: str, swap: str) -> None:
    choices = choices_for(f"model={model}")
    slot, name = swap.split("=", 1)
    trains_or_says_why_not(choices["objective"], model=model, guide=choices["guide"], **{slot: name})
