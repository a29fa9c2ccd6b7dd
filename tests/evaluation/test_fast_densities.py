"""The evaluator's own densities are log_prob, to rounding."""

import pytest
import torch
from pyro import distributions as dist

from pyro_vae.evaluation import fast_log_prob
from tests.support.grids import thinned


@pytest.mark.parametrize(
    ("shape", "scale"),
    thinned([(784,), (1, 28, 28), (64,), (7,), (113,), (1,), (2, 3, 5)], [0.1, 3.0, 40.0, 1e4]),
)
def test_the_product_trick_is_the_bernoulli_log_prob(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    logits = scale * torch.randn(6, 4, *shape)
    value = torch.rand(4, *shape).round()
    fn = dist.Bernoulli(logits=logits).to_event(len(shape))
    exact = dist.Bernoulli(logits=logits.double()).to_event(len(shape)).log_prob(value.double())
    found = fast_log_prob.log_prob(fn, value)
    assert found.shape == (6, 4)
    error = (found - exact).abs() / exact.abs().clamp(min=1.0)
    assert float(error.max()) < 2e-6  # float32 rounding of a sum of at most 784 terms


def test_an_expanded_bernoulli_is_scored_at_each_particle() -> None:
    logits = torch.randn(4, 12)
    fn = dist.Bernoulli(logits=logits).to_event(1).expand((3, 4))
    value = torch.ones(4, 12)
    torch.testing.assert_close(fast_log_prob.log_prob(fn, value), fn.log_prob(value))


@pytest.mark.parametrize(
    "fn",
    [
        dist.Bernoulli(logits=torch.randn(5)),  # no event dimension to multiply over
        dist.Normal(torch.randn(5, 3), 1.0).to_event(1),
        dist.Bernoulli(probs=torch.rand(5, 3)).to_event(1).mask(torch.tensor(True)),
    ],
)
def test_what_the_table_lacks_is_log_prob_itself(fn: dist.TorchDistribution) -> None:
    value = torch.ones(fn.batch_shape + fn.event_shape)
    assert torch.equal(fast_log_prob.log_prob(fn, value), fn.log_prob(value))


@pytest.mark.parametrize(
    ("pixels", "factors"), [(784, 49), (64, 4), (560, 35), (3072, 96), (36, 36), (1, 1), (1009, 1)]
)
def test_as_many_pixels_are_multiplied_up_as_leave_whole_vectors_and_can_not_overflow(
    pixels: int, factors: int
) -> None:
    assert fast_log_prob._factors(pixels) == factors
    assert torch.full((pixels // factors, factors), 2.0).prod(-1).isfinite().all()
