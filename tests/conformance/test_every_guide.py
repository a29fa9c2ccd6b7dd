"""Every guide and model as programs: densities of their own draws, foreign values, a pair with
everything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae import log_densities
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from tests.support.conforming import (
    choices_for,
    every,
    images,
    names,
    one_line,
    programs,
    rows,
    shaken,
    verdict,
)
from tests.support.laws import assert_mean_ratio_is_one, scipy_log_prob

DOUBLE = torch.float64


def pair_with(guide: str) -> tuple[Any, Any, Tensor]:
    """The guide with a model that it works with, both away from the initial point; and images."""
    model, program = (shaken(module) for module in programs(f"guide={guide}", dtype=DOUBLE))
    return model, program, images(model)


def structure_of(guide: str) -> Structure:
    """What is known of the guide's pair."""
    found = verdict(choices_for(f"guide={guide}")["model"], guide)
    assert isinstance(found, Structure)
    return found


@pytest.mark.parametrize("model", names("model"))
@pytest.mark.parametrize("guide", names("guide"))
def test_a_pair_or_a_sentence(model: str, guide: str) -> None:
    """Any model and any guide: a pair, or one line that says why not, before anything is trained."""
    found = verdict(model, guide)
    assert isinstance(found, Structure) or one_line(found)


@every("guide")
@pytest.mark.parametrize("num_particles", [1, 3])
def test_shapes(guide: str, num_particles: int) -> None:
    """Every site's density is ``(K, B)``, and every image's depends on that image alone."""
    model, program, x = pair_with(guide)
    terms = log_densities(model, program, x, num_particles=num_particles, **rows(x, model, program))
    for site in (*terms.guide.values(), *terms.prior.values(), *terms.observed.values()):
        assert site.log_prob.shape == (num_particles, len(x)) and site.log_prob.isfinite().all()


@every("guide")
def test_the_mean_density_ratio_at_draws_is_one(guide: str) -> None:
    """E_q[h(z) / q(z | x)] = 1 for a fixed density h of light tails, q being scored at its own
    draws.
    """
    if structure_of(guide).point_masses:
        pytest.skip("a point mass has no density")
    if not structure_of(guide).latents:
        pytest.skip("a guide without a site draws nothing")
    if structure_of(guide).enumerated:
        pytest.skip("a class among the latents: its mass is no density")
    model, program, x = pair_with(guide)
    torch.manual_seed(0)
    with torch.no_grad():
        pilot, _ = drawn(model, program, x, 500)
        z, log_q = drawn(model, program, x, 5000)
    assert_mean_ratio_is_one(pilot, z, log_q)


def drawn(model: Any, guide: Any, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """All latents of ``number`` draws joined, ``(K, B, d)``, and log q, ``(K, B)``."""
    sites = log_densities(
        model, guide, x, num_particles=number, **rows(x, model, guide)
    ).guide.values()
    values = [site.value.reshape(number, len(x), -1) for site in sites]
    return torch.cat(values, -1), sum(
        (site.log_prob for site in sites), torch.zeros(number, len(x), dtype=DOUBLE)
    )


@every("guide")
def test_log_prob_is_scipys(guide: str) -> None:
    model, program, x = pair_with(guide)
    sites = log_densities(
        model, program, x, num_particles=1, **rows(x, model, program)
    ).guide.values()
    checked = False
    for site in sites:
        expected = scipy_log_prob(site.fn, site.value)
        if expected is not None:
            np.testing.assert_allclose(
                site.log_prob.detach().numpy().ravel(), expected.ravel(), rtol=1e-8, atol=1e-8
            )
            checked = True
    if not checked:
        pytest.skip("SciPy has no such distribution")


@every("guide")
def test_an_amortized_guides_parameters_are_a_function_of_the_image(guide: str) -> None:
    """``build(local(x))`` is q(z | x): deterministic given x, one law an image, for any batch of
    parameters.
    """
    _, program, x = pair_with(guide)
    if not hasattr(program, "build"):
        pytest.skip("not an amortized guide: a program of its own")
    fields = rows(x)
    eta = program.local(x, **fields)
    assert torch.equal(eta, program.local(x, **fields)) and len(eta) == len(x)
    torch.manual_seed(0)
    for lead in ((), (3,)):
        law = program.build(eta.expand(*lead, *eta.shape))
        assert (
            law.batch_shape == (*lead, len(x))
            and law.sample().shape == law.batch_shape + law.event_shape
        )


@every("guide")
def test_a_guide_trains_no_parameter_of_the_model(guide: str) -> None:
    """The model's parameters are the model's alone, or freezing one program would freeze both."""
    model, program = programs(f"guide={guide}")
    held = {id(parameter) for parameter in model.parameters()}
    assert not [name for name, parameter in program.named_parameters() if id(parameter) in held]


@every("model")
def test_a_models_density_is_that_of_what_it_generates(model: str) -> None:
    """What ``model(None, size=n)`` draws has a finite density under some guide, and the plate is
    the data's.
    """
    program, guide = programs(f"model={model}")
    x = images(program, 5)
    assert x.shape[0] == 5
    structure = Pair.of(program, guide).structure(x, rows(x))
    assert structure.observed and not structure.subsampling
