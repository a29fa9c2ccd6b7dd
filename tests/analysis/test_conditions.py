"""A model that reads the values of x generates at given images, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_vae as pv
from tests.support.foreign import SPELLINGS, Foreign


def made(case: Foreign, size: int, **options: Any) -> torch.Tensor:
    fields = {name: value[:size] for name, value in case.fields.items()}
    (values,) = pv.sample(
        case.model, size, guide=case.guide, device="cpu", **options, **fields
    ).values()
    return values


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("library_size", "distribution of site 'x' depends on the values of x.*x=…"),
        ("conditional_vae", "distribution of site 'y' depends on the values of x.*x=…"),
        ("support_of_the_batch", "fails on images of zeros .*x=…"),
    ],
)
def test_zeros_never_stand_for_a_condition(name: str, words: str) -> None:
    case = SPELLINGS[name]()
    with pytest.raises(pv.UserError, match=words):
        made(case, 7, like=case.x)
    assert made(case, 7, x=case.x[:7]).shape == (7, case.x.shape[1])


def test_rows_are_made_at_the_conditions_of_their_own() -> None:
    """E[y | x] = x + b in the conditional model."""
    case, repeats = SPELLINGS["conditional_vae"](), 2000
    case.fields = {"ys": case.fields["ys"].repeat(repeats, 1)}
    x = case.x.repeat(repeats, 1)
    values = made(case, len(x), x=x, mean=False).reshape(repeats, *case.x.shape)
    apart = (values.mean(0) - case.x).abs()
    assert bool((apart < 5 * values.std(0) / repeats**0.5).all())


def test_a_model_that_only_observes_x_needs_none() -> None:
    case = SPELLINGS["methods"]()
    assert made(case, 7, like=case.x[:1]).shape == (7, case.x.shape[1])
    with pytest.raises(pv.UserError, match="x has 3 images: expected 7"):
        made(case, 7, x=case.x[:3])
