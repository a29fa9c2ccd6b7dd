"""The objectives are Pyro's own, to the last bit, where Pyro is right; and right where it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae import fit, guides, models
from pyro_vae.choices import lookup, registry
from pyro_vae.errors import UserError
from pyro_vae.objectives import FreeBits, Objective, Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from tests.support.exact import two_levels
from tests.support.grids import thinned
from tests.support.objectives import bernoulli_latents, ours, scaled, with_gradients
from tests.support.pairs import FORMS, LATENT, Decoder, Encoder, Guide, Model, binary_images, fresh

X = binary_images(20)
BOTH = {
    "Trace_ELBO": (Trace_ELBO, infer.Trace_ELBO),
    "TraceMeanField_ELBO": (TraceMeanField_ELBO, infer.TraceMeanField_ELBO),
}


def pyros(
    objective: Any, model: Any, guide: Any, x: Tensor, seed: int = 3
) -> tuple[Tensor, dict[int, Tensor]]:
    """The same by Pyro's own class, the parameters of functions being those of the pair."""
    with Pair.of(model, guide).store.scope(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Found plate statements in guide but not model"
        )  # plates of two names
        torch.manual_seed(seed)
        return with_gradients(objective.differentiable_loss(model, guide, x))


def assert_same_bits(
    a: tuple[Tensor, dict[int, Tensor]], b: tuple[Tensor, dict[int, Tensor]]
) -> None:
    """Equal losses, and equal gradients in the same parameters."""
    assert torch.equal(a[0], b[0])
    assert a[1].keys() == b[1].keys() and len(a[1]) > 0
    for leaf, gradient in a[1].items():
        assert torch.equal(gradient, b[1][leaf])


# ---- Pyro's bits


@pytest.mark.parametrize(("name", "form"), thinned(BOTH, FORMS))
def test_loss_and_gradients_are_pyros(form: str, name: str) -> None:
    model, guide = fresh(form)
    mine, theirs = BOTH[name]
    for seed in range(5):
        assert_same_bits(
            ours(mine(), model, guide, X, seed), pyros(theirs(), model, guide, X, seed)
        )


OURS: dict[str, Callable[[], tuple[Any, Any, Tensor]]] = {
    "Bernoulli, MLP": lambda: (
        models.GenerativeModel(models.StandardNormal(3), models.Bernoulli(3, (12,), hidden=(8,))),
        guides.MeanField((12,), 3, hidden=(8,)),
        X,
    ),
    "Gaussian, per pixel": lambda: (
        models.GenerativeModel(
            models.StandardNormal(3), models.Gaussian(3, (1, 3, 4), scale="per_pixel", hidden=(8,))
        ),
        guides.MeanField((1, 3, 4), 3, hidden=(8,)),
        X.reshape(-1, 1, 3, 4),
    ),
    "Gaussian, Conv": lambda: (
        models.GenerativeModel(
            models.StandardNormal(3), models.Gaussian(3, (1, 8, 8), net="Conv", channels=(4, 6))
        ),
        guides.MeanField((1, 8, 8), 3, net="Conv", channels=(4, 6)),
        torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    ),
}


@pytest.mark.parametrize(("name", "case"), thinned(BOTH, OURS))
def test_our_models_and_guides_have_pyros_bits(case: str, name: str) -> None:
    torch.manual_seed(0)
    model, guide, x = OURS[case]()
    mine, theirs = BOTH[name]
    assert_same_bits(ours(mine(), model, guide, x), pyros(theirs(), model, guide, x))


@pytest.mark.parametrize("levels", [1, 2])
def test_score_function_gradients_are_pyros(levels: int) -> None:
    model, guide = bernoulli_latents(levels)
    structure = Pair.of(model, guide).structure(X, {})
    assert structure.not_reparameterized == ("b",)
    mine, theirs = ours(Trace_ELBO(), model, guide, X), pyros(infer.Trace_ELBO(), model, guide, X)
    assert torch.equal(mine[0], theirs[0])
    if levels == 1:
        assert_same_bits(mine, theirs)
    for leaf, gradient in mine[1].items():  # with two, the same terms may be added in another order
        torch.testing.assert_close(gradient, theirs[1][leaf], rtol=1e-5, atol=1e-6)


def test_the_mean_field_objective_refuses_draws_without_a_path() -> None:
    model, guide = bernoulli_latents()
    with pytest.raises(
        UserError, match=r"TraceMeanField_ELBO needs reparameterised draws, but site 'b'"
    ):
        TraceMeanField_ELBO()(model, guide)(X)
    history = fit(
        model,
        guide,
        X,
        objective="Trace_ELBO",
        num_epochs=2,
        progress=False,
        compile="off",
        device="cpu",
    )
    assert len(history.train) == 2


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("beta", "size"), [(0.3, None), (1.0, 500), (0.3, 500)])
def test_scales_are_pyros(name: str, beta: float, size: int | None) -> None:
    model, guide = scaled(beta, size)
    mine, theirs = BOTH[name]
    assert_same_bits(ours(mine(), model, guide, X), pyros(theirs(), model, guide, X))


def masked(keep: Tensor) -> tuple[Any, Any]:
    """Images that don't count."""
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=keep[: len(x)]):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=keep[: len(x)]):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


@pytest.mark.parametrize("name", BOTH)
def test_masks_are_pyros(name: str) -> None:
    model, guide = masked(torch.arange(len(X)) % 3 > 0)
    mine, theirs = BOTH[name]
    assert_same_bits(ours(mine(), model, guide, X), pyros(theirs(), model, guide, X))


# ---- where Pyro is wrong


def test_the_other_site_order_is_sampled_and_right() -> None:
    """Model a → b → x, guide b → a, exact: the ELBO is log p(x). Pyro's closed form at ``b`` is not
    its KL.
    """
    case = two_levels(200)
    structure = Pair.of(case.model, case.guide).structure(case.x, {})
    assert structure.analytic == ("a",)
    assert structure.sampled == {"b": "the guide samples 'a' after it, the model before it"}
    runs = []
    for seed in range(50):
        torch.manual_seed(seed)
        runs.append(-float(TraceMeanField_ELBO()(case.model, case.guide)(case.x)) / 200)
    found = torch.tensor(runs, dtype=torch.float64)
    assert abs(float(found.mean()) - case.mean) < 4 * float(found.std()) / 50**0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyro_says = (
            -infer.TraceMeanField_ELBO(num_particles=50).loss(case.model, case.guide, case.x) / 200
        )
    assert abs(pyro_says - case.mean) > 0.1
    torch.manual_seed(0)
    sampled = -float(Trace_ELBO()(case.model, case.guide)(case.x)) / 200
    assert sampled == pytest.approx(
        case.mean, abs=1e-9
    )  # the exact guide: every draw's ELBO is log p(x)


def top_down() -> tuple[Any, Any]:
    """Two levels in the model's own order, the second given the first: both KLs are closed."""
    decoder, encoder = Decoder(), Encoder(4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(torch.tanh(a), 0.5).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(b)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = encoder(x)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(loc[..., :2], scale[..., :2]).to_event(1))
            pyro.sample("b", dist.Normal(loc[..., 2:] + a, scale[..., 2:]).to_event(1))

    return model, guide


def test_the_same_site_order_is_closed_and_pyros() -> None:
    model, guide = top_down()
    assert Pair.of(model, guide).structure(X, {}).analytic == ("a", "b")
    assert_same_bits(
        ours(TraceMeanField_ELBO(), model, guide, X),
        pyros(infer.TraceMeanField_ELBO(), model, guide, X),
    )


def test_what_has_no_closed_form_is_sampled_and_said() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(5.0, torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 12), 1.0).to_event(1),
                obs=x,
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], pyro.param("scale", torch.ones(()))).to_event(1))

    structure = Pair.of(model, guide).structure(X, {})
    assert structure.analytic == () and "no closed form" in structure.sampled["z"]
    assert_same_bits(
        ours(TraceMeanField_ELBO(), model, guide, X),
        pyros(infer.TraceMeanField_ELBO(), model, guide, X),
    )


# ---- the KL weight


@pytest.mark.parametrize(("name", "weight"), thinned(BOTH, [0.0, 0.5, 4.0]))
def test_the_kl_weight_weighs_the_kl(name: str, weight: float) -> None:
    model, guide = fresh("PyroModules")
    loss = BOTH[name][0]()(model, guide)
    torch.manual_seed(1)
    whole = loss.measure(X, {})
    torch.testing.assert_close(whole.loss, whole.kl - whole.reconstruction)
    loss.kl_weight.fill_(weight)
    torch.manual_seed(1)
    found = loss.measure(X, {})
    torch.testing.assert_close(found.loss, weight * whole.kl - whole.reconstruction)
    assert torch.equal(found.kl, whole.kl) and torch.equal(
        found.reconstruction, whole.reconstruction
    )


def test_the_kl_weight_is_pyros_scale() -> None:
    """On both programs' latents: the same loss and gradients as ``poutine.scale`` on both."""
    plain, weighted = scaled(1.0, None), scaled(0.3, None)
    theirs = pyros(infer.TraceMeanField_ELBO(), *weighted, X)
    with torch.no_grad():
        for a, b in zip(parameters(plain), parameters(weighted), strict=True):
            a.copy_(b)
    loss = TraceMeanField_ELBO()(*plain)
    loss.kl_weight.fill_(0.3)
    torch.manual_seed(3)
    torch.testing.assert_close(loss(X).detach(), theirs[0])


def parameters(pair: tuple[Any, Any]) -> list[Tensor]:
    """All parameters of two closures, in the order of their modules."""
    known = Pair.of(*pair)
    known.structure(X, {})
    return known.tensors()


def test_the_closed_kl_is_torchs() -> None:
    model, guide = Model(), Guide()
    torch.manual_seed(0)
    estimate = TraceMeanField_ELBO()(model, guide).measure(X, {})
    with torch.no_grad():
        kl = kl_divergence(
            torch.distributions.Normal(*guide.net(X)), torch.distributions.Normal(0.0, 1.0)
        ).sum()
    torch.testing.assert_close(estimate.kl, kl)


# ---- several particles


@pytest.mark.parametrize(("name", "layout"), thinned(BOTH, ["plate", "rows", "repeat"]))
def test_particles_are_an_average(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same expected loss and gradients as one particle, in every layout; less noise."""
    model, guide = fresh("PyroModules")
    monkeypatch.setattr(Pair, "layout", lambda *_, **__: layout)
    one, many = BOTH[name][0](), BOTH[name][0](num_particles=4)
    samples = {
        k: [ours(goal, model, guide, X, seed) for seed in range(80)]
        for k, goal in (("one", one), ("many", many))
    }
    values = {k: torch.stack([loss for loss, _ in runs]) for k, runs in samples.items()}
    assert_same_mean(values["one"], values["many"], 4.0)
    assert values["many"].std() < 0.7 * values["one"].std()  # ½, with an error of 8%
    for leaf in samples["one"][0][1]:
        gradients = {
            k: torch.stack([g[leaf].flatten() for _, g in runs]) for k, runs in samples.items()
        }
        assert_same_mean(gradients["one"], gradients["many"], 5.0)


def assert_same_mean(a: Tensor, b: Tensor, z: float) -> None:
    """Two samples' means within ``z`` of their standard errors, up to rounding."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= z * error + 1e-4 * (1 + b.mean(0).abs())).all()


@pytest.mark.parametrize(
    "layout", ["plate", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rows", "repeat"))]
)
def test_particles_of_score_functions(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = bernoulli_latents()
    monkeypatch.setattr(Pair, "layout", lambda *_, **__: layout)
    runs = {k: [ours(Trace_ELBO(k), model, guide, X, seed) for seed in range(100)] for k in (1, 4)}
    for leaf in runs[1][0][1]:
        one, many = (torch.stack([g[leaf].flatten() for _, g in runs[k]]) for k in (1, 4))
        assert_same_mean(one, many, 5.0)


@pytest.mark.parametrize("count", [0, -1, 2.0, "3", True])
def test_particles_are_whole_numbers(count: Any) -> None:
    with pytest.raises(UserError, match="num_particles="):
        Trace_ELBO(num_particles=count)


CLOSED: list[Objective] = [
    TraceMeanField_ELBO(),
    TraceMeanField_ELBO(3),
    FreeBits(0.2),
    FreeBits(0.2, 3),
]


@pytest.mark.parametrize(
    ("objective", "layout"),
    thinned([*CLOSED, FreeBits(0.0, 6), TraceMeanField_ELBO(6)], ["plate", "rows", "repeat"]),
)
def test_a_closed_kl_is_the_same_of_any_number_of_particles(
    objective: Objective, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is reported as the KL is torch's own, summed over the images: no draw, and no count of
    draws, is in it.
    """
    model, guide = fresh("PyroModules")
    monkeypatch.setattr(Pair, "layout", lambda *_, **__: layout)
    found = objective(model, guide).measure(X, {})
    with torch.no_grad():
        kl = kl_divergence(
            torch.distributions.Normal(*guide.net(X)), torch.distributions.Normal(0.0, 1.0)
        ).sum()
    torch.testing.assert_close(found.kl, kl)


@pytest.mark.parametrize("name", sorted(lookup.members("objective")))
def test_the_figures_of_k_draws_have_the_mean_of_one(name: str) -> None:
    """Reconstruction and KL, whatever is maximised: the single-sample ELBO's parts."""
    model, guide = fresh("PyroModules")
    goals: tuple[Objective, ...] = (Trace_ELBO(), registry.build("objective", name))
    goals = (
        goals[0],
        replace(goals[1], **({"m": 2, "k": 3} if name == "MIWAE" else {"num_particles": 6})),
    )
    one, many = (
        torch.stack(
            [torch.stack((e.reconstruction, e.kl)) for e in measured(goal(model, guide), 30)]
        )
        for goal in goals
    )
    assert_same_mean(one, many, 4.0)


def measured(loss: Any, number: int) -> list[Any]:
    """Estimates of as many seeds."""
    found = []
    for seed in range(number):
        torch.manual_seed(seed)
        with torch.no_grad():
            found.append(loss.measure(X, {}))
    return found


def lone_scale(side: str, prior: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    """A latent that is scaled in one of the two programs."""
    decoder, encoder = Decoder(), Encoder()
    beta = {"model": 1.0, "guide": 1.0, side: 0.3}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta["model"]):
                z = pyro.sample("z", prior(x).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=beta["guide"]):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_lone_scale_is_of_two_terms_and_refused_where_a_kl_is_one(side: str) -> None:
    """Pyro's closed form ignores a scale of the model; ours is Pyro's Trace_ELBO there."""
    pair = lone_scale(side, lambda x: dist.Normal(x.new_zeros(LATENT), 1.0))
    values = []
    for loss in (TraceMeanField_ELBO()(*pair), infer.Trace_ELBO()(*pair)):
        torch.manual_seed(0)
        values.append(float(loss(X).detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    with pytest.raises(
        UserError,
        match=r"site 'z' is scaled by .* in the model and by .* in the guide, .* use kl_weight",
    ):
        FreeBits()(*pair)(X)


@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_lone_scale_of_a_sampled_kl(side: str) -> None:
    """Two terms in Pyro's estimators and ours of that name; still one in free bits."""
    model, guide = lone_scale(side, lambda x: dist.StudentT(5.0, x.new_zeros(LATENT), 1.0))
    with pytest.raises(UserError, match="site 'z' is scaled by"):
        FreeBits()(model, guide)(X)
    for mine, theirs in BOTH.values():
        assert_same_bits(ours(mine(), model, guide, X), pyros(theirs(), model, guide, X))


# ---- the loss module


def test_a_loss_is_a_module_of_its_programs() -> None:
    model, guide = Model(), Guide()
    loss = Trace_ELBO()(model, guide)
    assert {id(p) for p in loss.parameters()} == {
        id(p) for p in (*model.parameters(), *guide.parameters())
    }
    assert "kl_weight" not in loss.state_dict()


def test_a_torch_optimiser_trains_a_loss() -> None:
    """Pyro's ``svi_torch`` form, with our objective in the place of Pyro's."""
    model, guide = fresh("PyroModules")
    loss = TraceMeanField_ELBO()(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(X)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < sum(values[:10])
