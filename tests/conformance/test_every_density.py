"""Every prior and likelihood: shapes, support, mass 1, and SciPy's word where it has the same
distribution.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from conforming import EVENT_SHAPE, LEVELS, build, every, images, one_line, shaken, swaps
from laws import assert_mean_ratio_is_one, log_mass, pixel_support, scipy_log_prob

from pyro_vae import check_pair
from pyro_vae.data.datasets import random_split
from pyro_vae.data.transforms import observe
from pyro_vae.errors import UserError
from pyro_vae.nn.conditional import ConditionalDistribution, Likelihood

DOUBLE = torch.float64
each = pytest.mark.parametrize("swap", swaps("prior", "likelihood"))
batches = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)


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


@each
@batches
def test_shapes(swap: str, batch: tuple[int, ...]) -> None:
    """``batch_shape`` is the context's, draws and densities have theirs, and each row is a law of
    its own.
    """
    part, _ = part_of(swap, EVENT_SHAPE)
    law = law_of(swap, batch, EVENT_SHAPE)
    assert law.batch_shape == batch and law.event_shape == part.event_shape
    x = law.sample()
    assert x.shape == batch + part.event_shape and law.sample((5,)).shape == (
        5,
        *batch,
        *part.event_shape,
    )
    log_prob = law.log_prob(x)
    assert log_prob.shape == batch and log_prob.dtype == DOUBLE and log_prob.isfinite().all()
    if batch == (2, 3):
        rows = law_of(swap, (6,), EVENT_SHAPE)  # the same draws of the prior, laid out otherwise
        torch.testing.assert_close(
            rows.log_prob(x.reshape(6, *part.event_shape)).reshape(2, 3), log_prob
        )


@each
def test_draws_are_in_the_support(swap: str) -> None:
    law = law_of(swap, (3,))
    assert law.support.check(law.sample((200,))).all()


@each
@pytest.mark.parametrize("seed", [0, 1])
def test_mass_is_one(swap: str, seed: int) -> None:
    """Σ or ∫ over the whole support of a law with two entries: enumerated, a range of counts, or a
    trapezoid.
    """
    part, prior = part_of(swap, (2,))
    torch.manual_seed(seed)
    law = part(prior().sample()) if isinstance(part, Likelihood) else part()
    with torch.no_grad():
        assert log_mass(law).item() == pytest.approx(0.0, abs=2e-5)


@each
def test_log_prob_is_scipys(swap: str) -> None:
    law = law_of(swap, (3,))
    x = law.sample((4,))
    expected = scipy_log_prob(law, x)
    if expected is None:
        pytest.skip("SciPy has no such distribution")
    np.testing.assert_allclose(law.log_prob(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


# ---- priors


@every("prior")
def test_the_mean_density_ratio_at_draws_is_one(prior: str) -> None:
    """E_p[h(z) / p(z)] = 1 for a fixed density h of light tails: the draws are those of the
    density.
    """
    law = law_of(f"prior={prior}", ())
    with torch.no_grad():
        pilot, z = law.sample((500,)), law.sample((5000,))
        assert_mean_ratio_is_one(pilot, z, law.log_prob(z))


# ---- likelihoods


@every("likelihood")
def test_kind_and_observes_are_the_supports(likelihood: str) -> None:
    """What the part says of itself is what its distribution is."""
    part, _ = part_of(f"likelihood={likelihood}", (2,))
    support = pixel_support(law_of(f"likelihood={likelihood}", ()))
    assert isinstance(part, Likelihood)
    assert part.kind == ("mass" if support.is_discrete else "density")
    inside = {
        "binary": [0.0, 1.0],
        "unit": [0.25, 0.5],
        "real": [-3.0, 0.5],
        "levels": [0.0, 1.0, 2.0],
    }
    assert support.check(torch.tensor(inside[part.observes], dtype=DOUBLE)).all()


@every("likelihood")
def test_what_is_observed_of_stored_images_is_in_the_support(likelihood: str) -> None:
    """``--binarize auto`` gives every likelihood something that it is defined on."""
    model: Any = build(likelihood=likelihood)[0]
    levels = torch.randint(
        0, LEVELS, (12, *EVENT_SHAPE), generator=torch.Generator().manual_seed(0)
    )
    data = random_split("levels", levels.to(torch.uint8), None, seed=0, test_fraction=0.5)
    x = observe(data, "auto", model.likelihood.observes).x_test
    law = model.likelihood(model.prior().sample((len(x),)))
    assert law.support.check(x).all() and law.log_prob(x).isfinite().all()


@every("likelihood")
def test_values_outside_the_support_are_refused(likelihood: str) -> None:
    """In one sentence, before training: negative, fractional, above the range, NaN."""
    model: Any
    model, guide = build(likelihood=likelihood)
    x = images(model)
    support = pixel_support(model.likelihood(model.prior().sample()))
    outside = [
        value
        for value in (-1.0, 0.5, 1.5, 1e6, float("nan"))
        if not support.check(torch.tensor(value))
    ]
    assert outside  # NaN at the least
    for value in outside:
        bad = x.clone()
        bad[-1].flatten()[-1] = value
        with pytest.raises(UserError) as refusal:
            check_pair(model, guide, bad)
        one_line(refusal.value)


@every("likelihood")
def test_the_mean_is_a_picture(likelihood: str) -> None:
    """E[x | z], which is shown, is that of the draws, within 5 standard errors; or has no place out
    of their range.
    """
    law = law_of(f"likelihood={likelihood}", (3,))
    mean = law.mean
    assert mean.shape == law.batch_shape + law.event_shape and mean.isfinite().all()
    draws = law.sample((4000,)).to(DOUBLE)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - mean).abs() <= 5 * error + 1e-6).all()
