"""Every prior and likelihood: shapes, support, mass 1, and SciPy's word where it has the same
distribution.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_vae import check_pair
from pyro_vae.data.image_data import random_split
from pyro_vae.data.transforms import observe
from pyro_vae.errors import UserError
from pyro_vae.nn.conditional import Likelihood
from tests.support.conforming import EVENT_SHAPE, LEVELS, build, every, images, one_line, swaps
from tests.support.laws import pixel_support
from tests.support.part_laws import (
    DOUBLE,
    assert_draws_are_the_densitys,
    assert_log_prob_is_scipys,
    assert_mass_is_one,
    law_of,
    part_of,
)

each = pytest.mark.parametrize("swap", swaps("prior", "likelihood"))
batches = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)


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
    assert_mass_is_one(swap, seed)


@each
def test_log_prob_is_scipys(swap: str) -> None:
    assert_log_prob_is_scipys(swap)


# ---- priors


@every("prior")
def test_the_mean_density_ratio_at_draws_is_one(prior: str) -> None:
    assert_draws_are_the_densitys(prior)


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
        "counts": [0.0, 1.0, 1000.0],
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
