"""Laws of one part, by the name of its slot and its own: those of the suite, and those that a
listed part with a mistake breaks.
"""

from __future__ import annotations

from math import isfinite, prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import fit
from pyro_vae.nn.conditional import ConditionalDistribution, Likelihood
from tests.support.conforming import (
    build,
    choices_for,
    images,
    labels,
    loss_of,
    mean_loss,
    programs,
    shaken,
)
from tests.support.laws import assert_mean_ratio_is_one, log_mass, scipy_log_prob

DOUBLE = torch.float64
AS_TRAIN: dict[str, Any] = {
    "batch_size": 4,
    "progress": False,
    "schedule": "constant",
    "device": "cpu",
}


def part_of(
    swap: str, event_shape: tuple[int, ...]
) -> tuple[ConditionalDistribution, ConditionalDistribution]:
    """The part and its model's prior, away from the initial point, in float64."""
    slot, name = swap.split("=", 1)
    model: Any = shaken(build(event_shape=event_shape, dtype=DOUBLE, **{slot: name})[0]).eval()
    return getattr(model, slot), model.prior


def law_of(swap: str, batch: tuple[int, ...], event_shape: tuple[int, ...] = (2,)) -> Any:
    """The part's distribution with this batch shape: at draws of the prior, or a prior as a plate
    makes it.
    """
    part, prior = part_of(swap, event_shape)
    torch.manual_seed(0)
    context = prior().sample(torch.Size([prod(batch)])).reshape(*batch, -1)
    return part(context) if isinstance(part, Likelihood) else part().expand(torch.Size(batch))


def train(swap: str, model: nn.Module, guide: nn.Module, x: Tensor, **options: Any) -> Any:
    """A short training by the objective that goes with the swapped part."""
    return fit(
        model,
        guide,
        x,
        objective=choices_for(swap)["objective"],
        **labels(len(x), model, guide),
        **{**AS_TRAIN, **options},
    )


# ------------------------------------------------------------------------------------------
# The laws


def assert_mass_is_one(swap: str, seed: int) -> None:
    """Σ or ∫ over the whole support of a law with two entries: enumerated, a range of counts, or a
    trapezoid.
    """
    part, prior = part_of(swap, (2,))
    torch.manual_seed(seed)
    law = part(prior().sample()) if isinstance(part, Likelihood) else part()
    with torch.no_grad():
        assert log_mass(law).item() == pytest.approx(0.0, abs=2e-5)


def assert_log_prob_is_scipys(swap: str) -> None:
    """Where SciPy has the distribution; else the test is skipped."""
    law = law_of(swap, (3,))
    x = law.sample((4,))
    expected = scipy_log_prob(law, x)
    if expected is None:
        pytest.skip("SciPy has no such distribution")
    np.testing.assert_allclose(law.log_prob(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def assert_draws_are_the_densitys(prior: str) -> None:
    """E_p[h(z) / p(z)] = 1 for a fixed density h of light tails."""
    law = law_of(f"prior={prior}", ())
    with torch.no_grad():
        pilot, z = law.sample((500,)), law.sample((5000,))
        assert_mean_ratio_is_one(pilot, z, law.log_prob(z))


def assert_training_lowers_the_loss(swap: str) -> None:
    """On a few images, again and again, under the same noise before and after."""
    model, guide = programs(swap)
    x = images(shaken(programs(swap, seed=5)[0]))
    loss = loss_of(swap, model, guide)
    before = mean_loss(loss, x)
    history = train(swap, model, guide, x, num_steps=20, learning_rate=0.005, compile="off")
    assert history.num_steps == 20 and all(isfinite(record.loss) for record in history.train)
    assert mean_loss(loss, x) < before
