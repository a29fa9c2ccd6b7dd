"""Closed KL divergences of classes are torch's to the last bit, and can be traced."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch import distributions as torchs
from torch.distributions import kl_divergence

from pyro_vae.compile.trace import trace
from pyro_vae.pair import kl  # noqa: F401  # registers them

DRAWN = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 5, 4, generator=DRAWN)
EDGES = (
    torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]),
    torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]),
)


@pytest.mark.parametrize("name", ["Categorical", "OneHotCategorical"])
def test_the_divergence_of_classes_is_torchs(name: str) -> None:
    """Classes without mass too: 0 log 0 is 0, and mass where the prior has none is ∞."""
    ours, theirs = getattr(dist, name), getattr(torchs, name)
    for q, p in (LOGITS.softmax(-1), EDGES):
        found = kl_divergence(ours(probs=q), ours(probs=p))
        assert torch.equal(found, kl_divergence(theirs(probs=q), theirs(probs=p)))
    assert torch.isinf(found).tolist() == [True, False, False]


def test_it_can_be_traced() -> None:
    def divergence(a: Tensor, b: Tensor) -> list[Tensor]:
        return [kl_divergence(dist.OneHotCategorical(logits=a), dist.OneHotCategorical(logits=b))]

    with pyro.validation_enabled(False):  # its checks read values
        program = trace(divergence, list(LOGITS))
    again = [logits + 1.5 * logits.square() for logits in LOGITS]
    assert torch.equal(program(*again)[0], divergence(*again)[0])
