"""Layers of latents: which KL has a closed form that is right, exact numbers of linear ones, and
every verb of the package.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import distributions as dist
from pyro import infer
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import models
from pyro_vae.analysis.generate import decode
from pyro_vae.choices import registry
from pyro_vae.cli import entry
from pyro_vae.nn.hierarchy import level_args
from pyro_vae.objectives import Objective, Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.pair.log_weights import log_densities
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.options import Train
from tests.support.exact import two_levels

SHAPE = (1, 4, 4)
BINARY = (torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4).float()
GUIDES = ("BottomUp", "TopDown")


def hierarchy(
    guide: str = "BottomUp", dims: tuple[int, ...] = (4, 3), seed: int = 0, **options: Any
) -> tuple[Any, Any]:
    """A pair as the command line builds it."""
    levels = {
        "model": f"Hierarchical(latent_dims={dims})",
        "guide": guide,
        "net": "MLP(hidden=(8,), activation=tanh)",
    }
    return build_pair(Train(seed=seed, **{**levels, **options}), SHAPE, len(BINARY))


def linear_pair(guide: str, slope: float = 1.0, s: float = 0.8, t: float = 0.5) -> tuple[Any, Any]:
    """z2 ~ N(0, 1), z1 | z2 ~ N(slope z2, s²), x | z1 ~ N(z1, t²), in float64; the guide is linear,
    as it is initialised.
    """
    torch.manual_seed(1)
    likelihood = models.Gaussian(1, (1,), scale=t, hidden=())
    model = models.Hierarchical(
        models.StandardNormal(1), likelihood, latent_dims=(1, 1), hidden=()
    ).double()
    inference = registry.build(
        "guide", guide, event_shape=(1,), model=model, net="MLP(hidden=())"
    ).double()
    with torch.no_grad():
        set_linear(likelihood.net, [[1.0]], [0.0])
        set_linear(model.conditionals[0].net, [[slope], [0.0]], [0.0, torch.tensor(s).log()])
    return model, inference


def set_linear(net: nn.Module, weight: Any, bias: Any) -> None:
    """The one linear layer of a network without hidden ones."""
    (layer,) = [module for module in net.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight, dtype=layer.weight.dtype))
        layer.bias.copy_(torch.as_tensor(bias, dtype=layer.bias.dtype))


def exact_guide(kind: str) -> tuple[Any, Any, Tensor, Tensor]:
    """The linear pair with its exact posterior for a guide; images, and the exact log p(x)."""
    s, t, case = 0.8, 0.5, two_levels()
    model, guide = linear_pair(kind)
    var = 1 + s**2  # of z1
    gain = var / (var + t**2)
    if kind == "BottomUp":
        first, second = guide.conditionals
        set_linear(first.net, [[gain], [0.0]], [0.0, 0.5 * torch.tensor(gain * t**2).log()])
        set_linear(second.net, [[1 / var], [0.0]], [0.0, 0.5 * torch.tensor(s**2 / var).log()])
    else:  # the message of x to z1 is N(z1; x, t²), and z2's posterior given x is climbed to through it
        set_linear(guide.climb[0], [[1.0], [0.0]], [0.0, torch.tensor(t).log()])
        top = 1 / (var + t**2)
        scale = 0.5 * torch.tensor(1 - top).log()
        set_linear(guide.climb[1], [[top, 0.0], [0.0, 0.0]], [0.0, scale])
    return model, guide, case.x, case.log_px


# ---- exact numbers


@pytest.mark.parametrize("kind", GUIDES)
def test_the_exact_posterior_has_constant_weights(kind: str) -> None:
    """Both families hold the posterior of a linear hierarchy of single units: every weight is p(x)."""
    model, guide, x, log_px = exact_guide(kind)
    with torch.no_grad():
        weights = log_densities(model, guide, x, 20).log_weights()
    # the scales are set from float32 logarithms
    torch.testing.assert_close(weights, log_px.expand(20, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", GUIDES)
def test_importance_sampling_finds_the_exact_number(kind: str) -> None:
    """With a guide that is wider than the posterior."""
    model, guide, x, log_px = exact_guide(kind)
    with torch.no_grad():
        for parameter in guide.parameters():
            if parameter.dim() == 1:
                parameter[1] += 0.3
    result = pv.log_marginal(model, guide, x, num_samples=1000, device="cpu", compile="off")
    assert float(((result.log_px - log_px) / result.se).abs().max()) < 4.5
    assert abs(result.mean - float(log_px.mean())) < 4.5 * result.se_mc + abs(result.bias)
    assert 1e-4 < result.se_mc < 0.02


# ---- the KL by site


def test_bottom_up_has_one_closed_kl() -> None:
    """The top's: it stands first in the model. z1's prior is of a z2 that the guide draws after it."""
    said = pv.check_pair(*hierarchy("BottomUp"), BINARY).structure
    assert said.analytic == ("z2",) and said.sampled == {
        "z1": "the guide samples 'z2' after it, the model before it"
    }
    three = pv.check_pair(*hierarchy("BottomUp", (4, 3, 2)), BINARY).structure
    assert three.analytic == ("z3",) and three.sampled.keys() == {"z2", "z1"}


@pytest.mark.parametrize("dims", [(4, 3), (4, 3, 2), (2, 2, 2, 2)])
def test_top_down_has_every_kl_closed(dims: tuple[int, ...]) -> None:
    said = pv.check_pair(*hierarchy("TopDown", dims), BINARY).structure
    assert said.analytic == said.latents == tuple(f"z{level}" for level in range(len(dims), 0, -1))


def mean_and_error(objective: Any, model: Any, guide: Any, x: Tensor) -> tuple[float, float]:
    """Of the loss per image, over 20 runs of the objective."""
    ours = isinstance(objective, Objective)
    loss = objective(model, guide) if ours else lambda x: objective.loss(model, guide, x)
    losses = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Failed to verify mean field restriction"
        )  # Pyro's, of the case that is shown here
        for seed in range(20):
            torch.manual_seed(seed)
            losses.append(float(loss(x)) / len(x))
    every = torch.tensor(losses, dtype=torch.float64)
    return float(every.mean()), float(every.std() / len(every) ** 0.5)


@pytest.mark.parametrize("kind", GUIDES)
def test_closed_and_sampled_kls_agree_in_mean(kind: str) -> None:
    """The rule by site leaves the ELBO what it is; Pyro's class takes both of a bottom-up guide's
    KLs closed, and is wrong.
    """
    model, guide = linear_pair(kind, slope=1.5)
    x = two_levels().x
    sampled, closed = (
        mean_and_error(o(num_particles=100), model, guide, x)
        for o in (Trace_ELBO, TraceMeanField_ELBO)
    )
    assert abs(sampled[0] - closed[0]) < 4.5 * (sampled[1] ** 2 + closed[1] ** 2) ** 0.5
    pyros = infer.TraceMeanField_ELBO(
        num_particles=100, vectorize_particles=True, max_plate_nesting=1
    )
    wrong = mean_and_error(pyros, model, guide, x)
    far = abs(wrong[0] - sampled[0]) / (wrong[1] ** 2 + sampled[1] ** 2) ** 0.5
    assert far > 6 if kind == "BottomUp" else far < 4.5


def test_top_down_is_the_product_of_message_and_prior() -> None:
    """q(z1 | z2, x) ∝ N(z1; h(x)) p(z1 | z2), by Bayes' theorem on a grid."""
    model, guide = linear_pair("TopDown", slope=1.5)
    x, grid = two_levels().x[:1], torch.linspace(-12, 12, 4001, dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        terms = log_densities(model, guide, x)
        z2 = terms.guide["z2"].value[..., 0, :]
        loc, log_scale = guide.climb[0](x)[0]
        joint = dist.Normal(loc, log_scale.exp()).log_prob(grid) + model.conditionals[0](
            z2
        ).base_dist.log_prob(grid)
        posterior = (joint - joint.max()).exp()
        posterior = posterior / (posterior.sum() * (grid[1] - grid[0]))
        q = terms.guide["z1"].fn.base_dist
        torch.testing.assert_close(
            q.log_prob(grid).flatten().exp(), posterior, rtol=1e-8, atol=1e-8
        )


# ---- its parts


def test_burda_et_als_architecture() -> None:
    """x → 200 → 200 → z1 (100) → 100 → 100 → z2 (50), the model mirrored: the layers of section 5
    of the paper.
    """
    widths = "hidden=((200, 200), (100, 100)), activation=tanh"
    options = Train(
        model=f"Hierarchical(latent_dims=(100, 50), {widths})", guide=f"BottomUp({widths})"
    )
    model, guide = build_pair(options, (1, 28, 28), 60_000)
    shapes = [
        [tuple(w.shape) for w in each.parameters() if w.dim() == 2]
        for each in (guide, model.conditionals, model.likelihood)
    ]
    assert shapes[0] == [(200, 784), (200, 200), (200, 200), (100, 100), (100, 100), (100, 100)]
    assert shapes[1:] == [[(100, 50), (100, 100), (200, 100)], [(200, 100), (200, 200), (784, 200)]]
    assert {
        type(m)
        for m in (*guide.modules(), *model.modules())
        if type(m).__module__.endswith("activation")
    } == {nn.Tanh}


def test_a_bare_name_is_a_hierarchy_above_latent_dim() -> None:
    """Twice latent_dim below latent_dim, the prior and the likelihood at their ends."""
    model, guide = build_pair(
        Train(model="Hierarchical", guide="TopDown", latent_dim=3, prior="MixtureOfGaussians"),
        SHAPE,
        40,
    )
    assert model.latent_dims == (6, 3)
    assert model.prior.event_shape == (3,) and model.likelihood.latent_dim == 6
    assert len(guide.climb) == 2


@pytest.mark.parametrize("kind", GUIDES)
def test_a_convolution_serves_the_image_alone(kind: str) -> None:
    model, guide = hierarchy(
        kind, net="Conv(channels=(4, 4))", likelihood="Gaussian(scale=per_pixel)"
    )
    assert pv.check_pair(model, guide, BINARY).structure.observed == ("x",)
    convolves = [
        any(isinstance(m, nn.Conv2d) for m in each.modules()) for each in (model.likelihood, guide)
    ]
    assert convolves == [True, True] and not any(
        isinstance(m, nn.Conv2d) for m in model.conditionals.modules()
    )


def test_widths_by_level() -> None:
    args = {"hidden": ((8, 7), (6,)), "activation": "tanh", "output_bias": "mean"}
    assert level_args(args, 2) == [
        {**args, "hidden": (8, 7)},
        {"hidden": (6,), "activation": "tanh"},
    ]
    assert level_args({"hidden": (8,)}, 3) == [{"hidden": (8,)}] * 3
    assert level_args({"channels": (4,)}, 2) == [{"channels": (4,)}, {}]


BAD = {
    "widths of more levels": (
        {"model": "Hierarchical(hidden=((8,), (8,), (8,)))"},
        "3 levels, and the hierarchy has 2",
    ),
    "no dimensions": ({"model": "Hierarchical(latent_dims=())"}, "dimensions of each level"),
    "a dimension of 0": ({"model": "Hierarchical(latent_dims=(4, 0))"}, "latent_dim=0"),
    "a guide of a hierarchy for one latent": (
        {"model": "GenerativeModel"},
        "GenerativeModel has no latent_dims",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_hierarchy_is_refused(name: str) -> None:
    options, words = BAD[name]
    with pytest.raises(pv.UserError, match=words):
        build_pair(Train(**{"model": "Hierarchical", "guide": "BottomUp", **options}), SHAPE, 40)


def test_parts_of_other_dimensions_are_refused() -> None:
    with pytest.raises(pv.UserError, match="the likelihood decodes 3 and the prior has 2"):
        models.Hierarchical(
            models.StandardNormal(2), models.Bernoulli(3, SHAPE), latent_dims=(4, 2)
        )
    assert models.Hierarchical(
        models.StandardNormal(2), models.Bernoulli(3, SHAPE)
    ).latent_dims == (3, 2)


def test_a_guide_of_one_latent_is_told_which_guides_fit() -> None:
    """In one line, before anything is trained."""
    with pytest.raises(
        pv.UserError, match="guides that fit Hierarchical: BottomUp, TopDown"
    ) as refusal:
        pv.check_pair(*hierarchy("MeanField"), BINARY)
    assert len(str(refusal.value).splitlines()) == 1


def test_the_model_stays_the_models() -> None:
    """TopDown uses p(z1 | z2) without owning it: other parameters, other state, and the model may
    be frozen.
    """
    model, guide = hierarchy("TopDown")
    assert not {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}
    before = [p.detach().clone() for p in model.parameters()]
    pv.fit(
        model,
        guide,
        BINARY,
        num_steps=3,
        batch_size=20,
        freeze="model",
        compile="off",
        device="cpu",
        progress=False,
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---- every verb


@pytest.mark.parametrize("kind", GUIDES)
def test_it_trains_and_generates_and_encodes(kind: str) -> None:
    model, guide = hierarchy(kind, (4, 3, 2))
    history = pv.fit(
        model,
        guide,
        BINARY,
        num_epochs=6,
        batch_size=20,
        learning_rate=0.02,
        device="cpu",
        progress=False,
    )
    assert history.train[-1].elbo > history.train[0].elbo and history.compile == "graph"
    with torch.no_grad():
        assert model(None, size=7).shape == (7, *SHAPE)
    means = pv.encode(model, guide, BINARY, device="cpu")
    assert {name: tuple(value.shape) for name, value in means.items()} == {
        "z1": (40, 4),
        "z2": (40, 3),
        "z3": (40, 2),
    }
    decoded = decode(model, {"z3": means["z3"]}, device="cpu")["x"]
    assert (
        decoded.shape
        == BINARY.shape
        == pv.reconstruct(model, guide, BINARY, device="cpu")["x"].shape
    )
    found = pv.diagnose(model, guide, BINARY, num_draws=5, device="cpu")
    assert found.kl.values.keys() == {"z1", "z2", "z3"} and found.rate_distortion.rate > 0
    ranks = pv.sbc_ranks(model, guide, size=40, num_draws=9, device="cpu").ranks
    assert {name: value.shape[1] for name, value in ranks.items()} == {"z1": 4, "z2": 3, "z3": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUIDES)
def test_a_run_is_trained_evaluated_drawn_and_loaded(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By words alone, with all pictures that fit."""
    folder = tmp_path / "run"
    options = [
        "--model",
        "Hierarchical(latent_dims=(4, 2))",
        "--guide",
        kind,
        "--net",
        "MLP(hidden=(16,))",
        "--steps",
        "40",
    ]
    options += ["--num-samples", "50", "--eval-images", "60", "--no-pictures"]
    assert entry.main(["train", *options, "--out", str(folder)]) == 0
    said = capsys.readouterr()
    assert "KL of 'z2': analytic" in said.err
    assert ("KL of 'z1': sampled, because the guide" in said.err) == (kind == "BottomUp")
    assert "latent_dim (4, 2)" in said.out
    assert entry.main(["plot", str(folder), "latent", "traversals"]) == 0
    assert {"latent.png", "traversals.png"} <= {p.name for p in folder.iterdir()}
    capsys.readouterr()
    model, guide = pv.load(folder)
    assert model.latent_dims == (4, 2) and type(guide).__name__ == kind
    assert (
        entry.main(
            ["evaluate", str(folder), "--num-samples", "50", "--num-images", "60", "--no-pictures"]
        )
        == 0
    )
    first, second = (line.split(" nats")[0] for line in (said.out, capsys.readouterr().out))
    assert first == second  # the same seed, the same parameters
