"""Refinement finds the best member of the family, and the two gaps are what they should be."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import UserError, encode, fit, guides, log_marginal, log_weights, models
from pyro_vae.evaluation import tiling
from pyro_vae.evaluation.refine import Refinement, refine
from pyro_vae.training.select_step import CAPTURES
from tests.support import pairs
from tests.support.exact import Exact, ppca
from tests.support.steps import replayed_on_cpu


class Untrained(nn.Module):
    """A mean-field guide for the pPCA of `exact`, of a network that has seen nothing."""

    def __init__(self, pixels: int = 6, latent_dim: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Linear(pixels, 2 * latent_dim, dtype=torch.float64)

    def local(self, x: Tensor) -> Tensor:
        """η = (μ, log σ)."""
        eta: Tensor = self.net(x)
        return eta

    def build(self, eta: Tensor) -> Any:
        """N(μ, diag σ²)."""
        loc, log_scale = eta.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        eta = self.local(x)
        with pyro.plate("images", len(x)):
            pyro.sample("latent", self.build(eta))


def refined_ppca(**options: Any) -> tuple[Exact, Untrained, Refinement]:
    """The pPCA pair, refined from an untrained network."""
    case, guide = ppca(30), Untrained()
    return (
        case,
        guide,
        refine(case.model, guide, case.x, **{"num_samples": 1000, "device": "cpu", **options}),
    )


refined_once = cache(refined_ppca)
"""The same for all that read it."""


@pytest.mark.slow
def test_an_untrained_net_comes_to_the_best_mean_field_posterior() -> None:
    case, _, result = refined_once()
    ours = log_marginal(case.model, result.guide, case.x, num_samples=4000, seed=9, device="cpu")
    draws = log_weights(case.model, result.guide, case.x, num_particles=1000).detach()
    error = float((draws.var(0) / 4000).sum().sqrt() / len(case.x))
    assert abs(case.mean - ours.elbo - case.mean_field_gap) < 4 * error + 0.006
    assert (
        abs(result.approximation_gap - case.mean_field_gap)
        < 4 * result.se_approximation_gap + 0.006
        < 0.04
    )
    assert result.amortization_gap > 1.0
    assert result.elbo_refined - result.elbo_amortized == pytest.approx(result.amortization_gap)
    assert float(result.log_px.mean()) - result.elbo_refined == pytest.approx(
        result.approximation_gap
    )


def test_the_best_guide_has_nothing_to_gain() -> None:
    """Refined once more from its own table, ELBO[q*] stays: the amortization gap is 0 within its
    error.
    """
    case, _, first = refined_once()

    class Table(Untrained):
        def local(self, x: Tensor) -> Tensor:
            return first.guide.look_up(x, None) if len(x) == 30 else super().local(x)

    again = refine(
        case.model, Table(), case.x, num_steps=100, num_samples=1000, seed=5, device="cpu"
    )
    assert abs(again.amortization_gap) < 4 * again.se_amortization_gap


def test_all_other_parameters_stay() -> None:
    model, guide = _network()
    before = [p.clone() for p in (*model.parameters(), *guide.parameters())]
    x = pairs.binary_images(20).reshape(-1, 1, 3, 4)
    result = refine(model, guide, x, num_steps=20, num_samples=50, compile="off")
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (*model.parameters(), *guide.parameters()), strict=True)
    )
    assert "local" not in vars(guide) and result.elbo_refined > result.elbo_amortized
    assert encode(model, result.guide, x, device="cpu")["z"].shape == (20, 2)


def _network() -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(2, (1, 3, 4), hidden=(8,))
        )
        return model, guides.MeanField((1, 3, 4), 2, hidden=(8,))


def test_staged_equals_eager() -> None:
    case, guide = ppca(8), Untrained()
    runs = [
        refine(case.model, guide, case.x, num_steps=30, num_samples=20, device="cpu", compile=c)
        for c in ("off", "graph")
    ]
    torch.testing.assert_close(runs[0].guide.eta, runs[1].guide.eta, rtol=0, atol=1e-8)


def test_a_captured_refinement_is_the_replayed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a replay on the CPU: the step is called with the rows of its own tile."""
    case, etas, captures = ppca(8), [], []

    def capture(step: Any, device: torch.device) -> Any:
        captures.append(step)
        return replayed_on_cpu(step, device)

    for kind in ("none", "cpu"):
        monkeypatch.setitem(CAPTURES, kind, capture)
        found = refine(
            *(case.model, Untrained(), case.x), num_steps=30, num_samples=20, compile="graph"
        )
        etas.append(found.guide.eta)
    assert captures
    torch.testing.assert_close(etas[0], etas[1], rtol=0, atol=0)


@pytest.mark.slow
def test_tiles_come_to_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, whole = refined_once()
    monkeypatch.setitem(tiling.ROWS, "cpu", 120)
    _, _, tiled = refined_ppca()
    error = (whole.se_approximation_gap**2 + tiled.se_approximation_gap**2) ** 0.5
    assert not torch.equal(whole.guide.eta, tiled.guide.eta)
    assert abs(whole.approximation_gap - tiled.approximation_gap) < 4 * error + 0.006


def test_pyro_params_of_the_fitted_pair_are_kept() -> None:
    """A model whose parameters are ``pyro.param`` statements: the refined pair has the trained
    ones.
    """

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(6, dtype=torch.float64))
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample(
                "pixels", dist.Normal(torch.cat((z, z), -1) + shift, 1.0).to_event(1), obs=x
            )

    case, guide = ppca(20), Untrained()
    fit(
        model,
        guide,
        case.x + 5.0,
        num_steps=60,
        learning_rate=0.1,
        device="cpu",
        compile="off",
        progress=False,
    )
    result = refine(model, guide, case.x + 5.0, num_steps=50, num_samples=200, compile="off")
    direct = log_marginal(model, result.guide, case.x + 5.0, num_samples=200, compile="off")
    assert abs(direct.elbo - result.elbo_refined) < 1.0


def test_fields_reach_the_guide() -> None:
    class Conditional(Untrained):
        def local(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return self.net(x) + y.unsqueeze(-1)

        def forward(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
            eta = self.local(x, y=y)
            with pyro.plate("images", len(x)):
                pyro.sample("latent", self.build(eta))

    case, y = ppca(12), torch.arange(12, dtype=torch.float64) % 2
    result = refine(
        case.model, Conditional(), case.x, num_steps=500, num_samples=500, device="cpu", y=y
    )
    assert result.approximation_gap == pytest.approx(case.mean_field_gap, abs=0.1)


# ---- what is said


def test_the_text_and_the_dictionary() -> None:
    _, _, result = refined_ppca(
        num_steps=20, num_samples=50, compile="off", protocol={"data": "pPCA"}
    )
    text = str(result)
    assert (
        "ELBO[q*]" in text
        and "approximation gap ≥" in text
        and "amortization gap" in text
        and "data pPCA" in text
    )
    figures = result.to_dict()
    for name in ("elbo_amortized", "elbo_refined", "approximation_gap", "amortization_gap"):
        assert figures[name] == getattr(result, name)
        assert figures[f"se_{name}"] == getattr(result, f"se_{name}") > 0


def test_a_reference_is_taken_for_log_px() -> None:
    case = ppca(30)
    exact = log_marginal(case.model, case.guide, case.x, num_samples=10, compile="off")
    _, _, result = refined_ppca(reference=exact)
    torch.testing.assert_close(result.log_px, case.log_px, rtol=0, atol=1e-9)
    other = log_marginal(case.model, case.guide, case.x + 1.0, num_samples=10, compile="off")
    with pytest.raises(UserError, match="their images differ"):
        refined_ppca(reference=other)


# ---- refusals


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_other_images_are_refused(compile: str) -> None:
    case, _, result = refined_ppca(num_steps=5, num_samples=20, compile="off")
    late = case.x.clone()
    late[20] += 1.0
    options: dict[str, Any] = {"num_samples": 20, "device": "cpu", "compile": compile}
    for x in (case.x + 1.0, case.x.flip(0), case.x[5:20], torch.cat((case.x, case.x)), late):
        with pytest.raises(UserError, match=r"refined for 30 images|log weights are NaN"):
            log_marginal(case.model, result.guide, x, **options)
    log_marginal(
        case.model, result.guide, case.x[:10], **options
    )  # the first of them are where they were


def test_a_guide_without_local_parameters_is_refused() -> None:
    case = ppca(6)
    with pytest.raises(
        UserError,
        match=r"guide has no methods for them: write the guide as an nn.Module with local\(x",
    ):
        refine(case.model, case.guide, case.x, num_steps=2, num_samples=2, device="cpu")


class Flat(Untrained):
    """η of the wrong shape."""

    def local(self, x: Tensor) -> Tensor:
        """η, (B, P, 1) where (B, P) is asked for, but for the forward pass."""
        return super().local(x).unsqueeze(-1)

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate("images", len(x)):
            pyro.sample("latent", self.build(self.local(x).squeeze(-1)))


class Deaf(Untrained):
    """A forward that doesn't ask ``local``."""

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate("images", len(x)):
            pyro.sample("latent", self.build(self.net(x)))


@pytest.mark.parametrize(
    "guide, words",
    [(Flat, r"Flat.local gives \(6, 6, 1\) for 6 images"), (Deaf, "don't depend on η")],
)
def test_unusable_local_parameters_are_refused(guide: type[Untrained], words: str) -> None:
    case = ppca(6)
    with pytest.raises(UserError, match=words):
        refine(case.model, guide(), case.x, num_steps=2, num_samples=2, device="cpu")


def test_bad_options_are_refused() -> None:
    case = ppca(6)
    bad: tuple[dict[str, Any], ...] = ({"num_steps": 0}, {"num_samples": 1.5}, {"seed": -1})
    for options in bad:
        with pytest.raises(UserError, match=next(iter(options))):
            refine(case.model, Untrained(), case.x, **options)
