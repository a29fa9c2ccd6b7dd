"""Programs of the grammar train and score as stock Pyro does, or are refused in a sentence."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from tests.differential.cover import COVER, FACTORS
from tests.differential.grammar import generate
from tests.differential.judge import FAILURES, Verdict, float64, judge
from tests.differential.oracle import build, log_px
from tests.support.grids import met, pairwise_cover

EVERYDAY = [*range(len(COVER))]  # each row of settings once
SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(len(COVER), 5 * len(COVER))]
BY_HAND = [pytest.param(seed, marks=pytest.mark.stress) for seed in range(5 * len(COVER), 1000)]


def hold(verdict: Verdict) -> None:
    """Equal or refused; else the program's text, which its seed gives again."""
    if verdict.verdict not in FAILURES:
        return
    pytest.fail(
        f"program {verdict.seed} is {verdict.verdict} at {verdict.stage}: {verdict.what}\n"
        f"(python -m tests.differential {verdict.seed})\n\n{generate(verdict.seed)}",
        pytrace=False,
    )


@pytest.mark.parametrize("seed", [*EVERYDAY, *SLOW, *BY_HAND])
def test_a_program_is_as_pyros_own_or_refused(seed: int) -> None:
    hold(judge(seed))


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(100))
def test_a_compiled_program_is_as_pyros_own_or_refused(seed: int) -> None:
    hold(judge(seed, compile="inductor"))


@pytest.mark.stress
def test_at_most_a_twentieth_of_what_pyro_trains_is_refused() -> None:
    verdicts = [judge(seed).verdict for seed in range(300)]
    trained = [each for each in verdicts if each != "untrainable"]
    assert trained.count("refused") <= 0.05 * len(trained)


# ---- the instrument itself


def test_each_two_settings_meet() -> None:
    pairs = {pair for row in COVER for pair in met(row)}
    names = sorted(FACTORS)
    wanted = {
        (a, u, b, w) for a in names for b in names if a < b for u in FACTORS[a] for w in FACTORS[b]
    }
    assert pairs == wanted
    assert pairwise_cover(FACTORS) == COVER


def test_a_seed_gives_its_text_again_and_each_text_is_a_program() -> None:
    for seed in range(1000, 1040):
        assert generate(seed) == generate(seed)
        assert build(generate(seed)).settings["num_epochs"] > 0


def test_the_oracles_quadrature_is_exact() -> None:
    with float64():
        program = build(LINEAR_GAUSSIAN)
        W = program.v.dec.weight.detach()
        exact = dist.MultivariateNormal(
            program.v.dec.bias.detach(), W @ W.t() + 0.49 * torch.eye(3)
        ).log_prob(program.x)
        for image in (0, 4):
            value, se = log_px(program, image, {})
            assert se == 0
            assert value == pytest.approx(float(exact[image]), abs=1e-8)


LINEAR_GAUSSIAN = """
import pyro, pyro.distributions as dist, torch
from torch import nn
torch.manual_seed(0)
class V(nn.Module):
    def __init__(s):
        super().__init__()
        s.enc, s.dec = nn.Linear(3, 2), nn.Linear(2, 3)
v = V()
def model(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.).to_event(1))
        with pyro.plate("pixels", 3, dim=-1):
            pyro.sample("x", dist.Normal(v.dec(z).squeeze(-2), .7), obs=x)
def guide(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(v.enc(x).unsqueeze(-2), 1.).to_event(1))
x, fields, dims = torch.randn(5, 3), {}, {"z": -2, "x": -2}
"""
