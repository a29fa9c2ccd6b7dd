"""Two parts swapped at once: every combination trains, or is refused in one sentence before
anything is trained.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
import torch

from pyro_vae import fit
from pyro_vae.errors import UserError
from tests.support.conforming import (
    DEFAULTS,
    build,
    choices_for,
    every,
    images,
    labels,
    one_line,
    swaps,
)

pytestmark = pytest.mark.slow

QUIET: dict[str, Any] = {"batch_size": 4, "device": "cpu", "compile": "off", "progress": False}
TRAINS, REFUSED = (
    "trains, with finite figures",
    "refused in one line, with all parameters as they were",
)
LAWFUL = {TRAINS, REFUSED}


def outcome(objective: str = DEFAULTS.objective, num_steps: int = 2, **choices: str) -> str:
    """What a few steps come to: the one or the other above, or in words how it is neither."""
    try:
        model, guide = build(**choices)
    except UserError as error:
        one_line(error)
        return REFUSED
    x = images(model)
    before = [tensor.clone() for tensor in (*model.parameters(), *guide.parameters())]
    try:
        history = fit(
            model, guide, x, objective, num_steps=num_steps, **QUIET, **labels(len(x), model, guide)
        )
    except UserError as error:
        one_line(error)
        pairs = zip((*model.parameters(), *guide.parameters()), before, strict=True)
        return (
            REFUSED
            if all(torch.equal(*each) for each in pairs)
            else f"refused after a parameter moved: {error}"
        )
    finite = all(
        isfinite(value) for r in history.train for value in (r.loss, r.elbo, r.reconstruction, r.kl)
    )
    return TRAINS if finite else f"trains to {history.train}"


@every("objective")
@every("guide")
def test_every_objective_with_every_guide(objective: str, guide: str) -> None:
    assert (
        outcome(objective, 3, model=choices_for(f"guide={guide}")["model"], guide=guide) in LAWFUL
    )


@every("objective")
@every("model")
def test_every_objective_with_every_model(objective: str, model: str) -> None:
    assert (
        outcome(objective, 3, model=model, guide=choices_for(f"model={model}")["guide"]) in LAWFUL
    )


@every("likelihood")
@every("prior")
def test_every_likelihood_with_every_prior(likelihood: str, prior: str) -> None:
    """They meet in z alone: none is refused."""
    assert outcome(likelihood=likelihood, prior=prior) == TRAINS


@every("likelihood")
@every("net")
def test_every_likelihood_with_every_net(likelihood: str, net: str) -> None:
    """A likelihood asks of its decoder the number of its outputs alone: none is refused."""
    assert outcome(likelihood=likelihood, net=net) == TRAINS


@every("guide")
@every("prior")
def test_every_guide_with_every_prior(guide: str, prior: str) -> None:
    choices = choices_for(f"guide={guide}")
    assert outcome(choices["objective"], model=choices["model"], guide=guide, prior=prior) in LAWFUL


@pytest.mark.parametrize("swap", swaps("prior", "likelihood", "net"))
@every("model")
def test_every_model_with_every_part(model: str, swap: str) -> None:
    choices = choices_for(f"model={model}")
    slot, name = swap.split("=", 1)
    assert (
        outcome(choices["objective"], model=model, guide=choices["guide"], **{slot: name}) in LAWFUL
    )
