"""Programs as other people write them go through as they are: Pyro's loss and gradients, the right
log p(x).
"""

from __future__ import annotations

import math
import warnings

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.fields import merged
from pyro_vae.pair.rescoring import leaves
from tests.support.foreign import SPELLINGS, Foreign, exact

EXACT = 1e-9
DRAWS, BATCHES = 2000, 25  # plain draws: 50 000 of the prior
STANDARD_ERRORS = 5.0


def gradients_of(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("name", SPELLINGS)
def test_loss_and_gradients_are_pyros(name: str) -> None:
    """Stock Trace_ELBO in the same noise, in Pyro's own parameter store."""
    case = SPELLINGS[name]()
    pyro.clear_param_store()
    fields = merged(case.fields)

    def ours() -> Tensor:
        objective = objectives.Trace_ELBO()
        return objective.differentiable_loss(case.model, case.guide, case.x.clone(), **case.fields)

    def stock() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pyro.deterministic in the guide
            return torch.as_tensor(
                Trace_ELBO().differentiable_loss(case.model, case.guide, case.x.clone(), **fields)
            )

    ours()  # what a dry run makes, it makes before
    values = []
    for run in (ours, stock):
        pyro.set_rng_seed(3)
        values.append(run())
    parameters = leaves(*values)
    assert parameters
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
    for own, theirs in zip(*(gradients_of(value, parameters) for value in values), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


EVERYDAY = (
    "methods", "wrappers", "plate_as_a_loop", "nested_fields", "fields_named_like_options",
    "missing_marked_by_nan", "a_factor_of_the_guide", "weights_of_the_whole_set",
)  # fmt: skip
"""One of each kind; the others are as cheap, but many."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in SPELLINGS],
)
def test_it_goes_through(name: str) -> None:
    """Checked, trained and scored, or refused for its reason alone."""
    case = SPELLINGS[name]()
    options = {"batch_size": len(case.x), "progress": False, "device": "cpu"}
    pv.check_pair(case.model, case.guide, case.x, **case.fields)
    history = pv.fit(
        case.model, case.guide, case.x, case.objective, num_steps=2, learning_rate=1e-12, **options,
        **case.fields,
    )  # fmt: skip
    assert math.isfinite(history.train[-1].loss)
    if case.refused:
        with pytest.raises(pv.UserError, match=case.refused):
            pv.log_marginal(
                case.model, case.guide, case.x, num_samples=5, device="cpu", **case.fields
            )
        return
    number = 50 if case.log_px is None and not case.plain else 2000
    found = pv.log_marginal(
        case.model, case.guide, case.x, num_samples=number, device="cpu", **case.fields
    )
    if case.plain:
        truth, se = by_plain_draws(case)
        apart = (found.log_px - truth).abs()
        assert bool((apart < STANDARD_ERRORS * (found.se**2 + se**2).sqrt() + 1e-3).all())
    elif case.log_px is None:
        assert found.log_px == pytest.approx(exact().numpy(), abs=1e-6)
    else:
        apart = found.log_px - case.log_px
        assert bool((apart.abs() < STANDARD_ERRORS * found.se + 1e-6).all())


def by_plain_draws(case: Foreign) -> tuple[Tensor, Tensor]:
    """log p(x) as the mean of p(x | z) over draws of the prior, by stock poutine alone; its SE."""
    pyro.set_rng_seed(0)
    fields, sums, squares = merged(case.fields), [], []
    rows = case.x.repeat_interleave(DRAWS, 0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(BATCHES):
            trace = poutine.trace(case.model).get_trace(rows, **fields)
            trace.compute_log_prob()
            terms = sum(
                site["log_prob"]
                for site in trace.nodes.values()
                if site["type"] == "sample" and site["is_observed"]
            )
            weights = terms.double().reshape(len(case.x), DRAWS)
            sums.append(weights.logsumexp(1))
            squares.append((2 * weights).logsumexp(1))
    number = math.log(DRAWS * BATCHES)
    mean = torch.stack(sums).logsumexp(0) - number
    second = torch.stack(squares).logsumexp(0) - number
    relative = ((second - 2 * mean).exp() - 1).clamp(min=0) / (DRAWS * BATCHES)
    return mean, relative.sqrt()
