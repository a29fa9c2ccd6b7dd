"""Every likelihood, guide and model with missing entries: NaN is left out, and nothing else
changes.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae import log_densities
from pyro_vae.choices import registry
from tests.support.conforming import (
    EVENT_SHAPE,
    LEVELS,
    every,
    images,
    programs,
    rows,
    shaken,
    swaps,
)
from tests.support.part_laws import DOUBLE, train


def holes(x: Tensor) -> Tensor:
    """False where an entry is missing: about 40%, in each image other ones; the first has none."""
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) > 0.4
    seen[0] = True
    return seen


@every("likelihood")
def test_the_density_is_that_of_the_entries_that_are_there(likelihood: str) -> None:
    """The sum of theirs, which is all of them at a whole image, bit for bit; with a gradient."""
    context: Any = {"event_shape": EVENT_SHAPE, "latent_dim": 2, "levels": LEVELS}
    whole, part = (
        shaken(registry.build("likelihood", likelihood, **context, missing=missing).to(DOUBLE))
        for missing in (None, "nan")
    )
    part.load_state_dict(whole.state_dict())
    z = torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    law = whole(z)
    torch.manual_seed(0)
    x = law.sample()
    seen = holes(x)
    assert torch.equal(part(z).log_prob(x), law.log_prob(x))
    found = part(z.requires_grad_()).log_prob(x.masked_fill(~seen, torch.nan))
    expected = law.base_dist.log_prob(x).where(seen, 0.0).flatten(1).sum(1)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("swap", swaps("guide", "model", "prior"))
def test_a_pair_leaves_out_what_is_missing(swap: str) -> None:
    """What is at a missing place is without effect, all else is not; a whole image has its plain
    densities, bit for bit where a network finds q(z | x); and the pair trains.
    """
    (model, guide), plain = programs(swap, missing="nan"), programs(swap)
    x = images(plain[0])
    seen, named = holes(x), rows(x, *plain)

    def densities(pair: Any, given: Tensor, **fields: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        terms = log_densities(*pair, given, 2, **named, **fields)
        sites = (*terms.observed.values(), *terms.prior.values(), *terms.guide.values())
        return [site.log_prob.detach() for site in sites]

    for ours, theirs in zip(densities((model, guide), x), densities(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(ours, theirs) or not hasattr(guide, "local")
    found = densities((model, guide), x, mask=seen)
    for other in (x.where(seen, 1 - x), x.where(seen, torch.nan)):
        again = densities((model, guide), other, mask=seen)
        assert all(map(torch.equal, found, again))
    assert all(each.isfinite().all() for each in found)
    assert (found[0][:, 1:] != densities((model, guide), x)[0][:, 1:]).all()
    history = train(swap, model, guide, x.where(seen, torch.nan), num_steps=3, compile="off")
    assert isfinite(history.train[-1].loss)
