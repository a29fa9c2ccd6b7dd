"""β by site: stock Pyro's loss with `poutine.scale` on those sites in both programs."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.cli.entry import main
from pyro_vae.errors import UserError
from pyro_vae.objectives import Loss
from pyro_vae.objectives.pyro_elbo import PyroELBO

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
WEIGHTS = {"z1": 0.5, "z2": 2.0}
OBJECTIVES: list[Any] = [
    objectives.Trace_ELBO(),
    objectives.TraceMeanField_ELBO(),
    objectives.FreeBits(0.0),
    PyroELBO(infer.Trace_ELBO()),
]


class Two(nn.Module):
    """Two latent sites, each in a scale of its own."""

    def __init__(self, **weights: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)
        self.weights = weights

    def sample(self, name: str, law: Any) -> Tensor:
        """A statement under its weight."""
        with poutine.scale(scale=self.weights.get(name, 1.0)):
            value: Tensor = pyro.sample(name, law.to_event(1))
        return value

    def model(self, x: Tensor) -> None:
        pyro.module("down", self.down)
        with pyro.plate("data", len(x)):
            z2 = self.sample("z2", dist.Normal(x.new_zeros(2), 1.0))
            z1 = self.sample("z1", dist.Normal(z2, 0.5))
            loc = self.down(torch.cat((z1, z2), -1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("up", self.up)
        loc2, loc1 = self.up(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            self.sample("z2", dist.Normal(loc2, 0.7))
            self.sample("z1", dist.Normal(loc1, 0.4))


def weighed(objective: Any, weights: dict[str, float], pair: Two) -> tuple[Tensor, list[Tensor]]:
    """Our loss of the plain pair, and its gradient."""
    loss: Loss = objective(pair.model, pair.guide)
    loss.site_weights = weights
    torch.manual_seed(0)
    value = loss(X)
    return value.detach(), list(torch.autograd.grad(value, [*pair.parameters()]))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_it_is_stock_pyros_scale_in_both_programs(objective: Any) -> None:
    found, gradients = weighed(objective, WEIGHTS, Two())
    pair = Two(**WEIGHTS)
    kind = infer.TraceMeanField_ELBO if "Trace_ELBO" not in repr(objective) else infer.Trace_ELBO
    torch.manual_seed(0)
    pyro.clear_param_store()
    expected = kind().differentiable_loss(pair.model, pair.guide, X)
    torch.testing.assert_close(found, expected.detach())
    slopes = torch.autograd.grad(expected, [*pair.parameters()])
    for ours, theirs in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(ours, theirs)
    plain, _ = weighed(objective, {}, Two())
    assert plain != found


@pytest.mark.parametrize("objective", [objectives.IWAE(4), objectives.DReG(4)], ids=repr)
def test_a_bound_of_many_draws_weighs_each_sites_ratio(objective: Any) -> None:
    """log 1/K Σ_k exp(log p(x | z) + Σ_s β_s [log p(z_s) − log q(z_s | x)]); its gradient for the
    model is that of this number.
    """
    pair = Two()
    found, gradients = weighed(objective, WEIGHTS, pair)
    torch.manual_seed(0)
    terms = pv.log_densities(pair.model, pair.guide, X, 4)
    ratios: Any = sum(
        WEIGHTS[name] * (terms.prior[name].log_prob - terms.guide[name].log_prob)
        for name in WEIGHTS
    )
    expected = -(torch.logsumexp(terms.observed["x"].log_prob + ratios, 0) - log(4)).sum()
    torch.testing.assert_close(found, expected.detach())
    of_model = torch.autograd.grad(expected, [*pair.down.parameters()])
    for ours, theirs in zip(gradients[-2:], of_model, strict=True):
        torch.testing.assert_close(ours, theirs)
    same = dict.fromkeys(WEIGHTS, 0.3)  # one β for all is the KL weight itself
    loss = objective(pair.model, pair.guide)
    loss.kl_weight.fill_(0.3)
    torch.manual_seed(0)
    whole = loss(X)
    each, slopes = weighed(objective, same, pair)
    torch.testing.assert_close(each, whole.detach())
    for ours, theirs in zip(slopes, torch.autograd.grad(whole, [*pair.parameters()]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_fit_takes_a_mapping_or_words() -> None:
    """The same training, in whichever tier; a weight of 1 is none; validation has none."""
    found = []
    for weights in ({"z1": 0.5}, "z1=0.5", {"z1": 0.5, "z2": 1.0}, 1.0):
        pair = Two()
        steps: dict[str, Any] = {"num_steps": 3, "batch_size": 6, "progress": False}
        history = pv.fit(pair.model, pair.guide, X, kl_weight=weights, x_valid=X, **steps)
        found.append((history.train[-1].loss, history.train[-1].kl))
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"z3": 0.5}, "unknown latent site of kl_weight 'z3'; .*z1"),
        ({"z1": -1.0}, "expected a number, 0 or more, or one of each latent site"),
        ("z1", "expected a number, 0 or more, or one of each latent site"),
    ],
)
def test_a_wrong_weight_is_a_line(weights: Any, words: str) -> None:
    pair = Two()
    with pytest.raises(UserError, match=words) as refusal:
        pv.fit(pair.model, pair.guide, X, kl_weight=weights, num_steps=1, progress=False)
    assert "\n" not in str(refusal.value)


def test_the_command_line_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = "--steps 2 --num-samples 5 --eval-images 4 --no-pictures --quiet --latent-dim 2"
    parts = ["--model", "Hierarchical", "--guide", "BottomUp", "--net", "MLP(hidden=(4,))"]
    run = tmp_path / "run"
    words = [*short.split(), *parts, "--out", str(run), "--kl-weight"]
    assert main(["train", *words, "z1=1,z2=0.5"]) == 0
    assert 'kl_weight = "z1=1,z2=0.5"' in (run / "config.toml").read_text()
    capsys.readouterr()
    assert main(["train", *words, "z1=half"]) == 2
    assert "--kl-weight z1=half: expected a number" in capsys.readouterr().err
