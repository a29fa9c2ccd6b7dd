"""Bounds of K draws and path derivatives: limits, independent implementations, the KL weight,
staging, and what is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from pyro.distributions.transforms import affine_autoregressive, conditional_planar
from torch import Tensor, nn

from pyro_vae import fit
from pyro_vae.choices import lookup, registry
from pyro_vae.compile.trace import missing_compiler
from pyro_vae.errors import UserError
from pyro_vae.objectives import (
    CIWAE,
    IWAE,
    MIWAE,
    STL,
    DReG,
    FreeBits,
    Objective,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro_vae.pair.nodes import sample_nodes
from pyro_vae.pair.rescoring import Held, leaves
from pyro_vae.pair.runtime import Pair
from pyro_vae.training.train_step import StagedStep
from tests.support.grids import thinned
from tests.support.objectives import bernoulli_latents, ours, scaled, with_gradients
from tests.support.pairs import FORMS, LATENT, PIXELS, Decoder, Encoder, binary_images, fresh
from tests.support.steps import plain_step

X = binary_images(20)
NAMES = sorted(lookup.members("objective"))
K_DRAWS: list[Objective] = [
    IWAE(4),
    RenyiELBO(0.5, 4),
    RenyiELBO(-2, 4),
    DReG(4),
    STL(4),
    MIWAE(2, 2),
    CIWAE(0.3, 4),
]


def assert_close(
    a: tuple[Tensor, dict[int, Tensor]], b: tuple[Tensor, dict[int, Tensor]], tolerance: float
) -> None:
    """Losses and the gradients of all parameters, up to rounding."""
    torch.testing.assert_close(a[0], b[0], rtol=tolerance, atol=0.0)
    assert a[1].keys() == b[1].keys() and len(a[1]) > 0
    for leaf, gradient in a[1].items():
        size = float(b[1][leaf].abs().max())
        torch.testing.assert_close(gradient, b[1][leaf], rtol=tolerance, atol=tolerance * size)


# ---- limits, in the same noise


@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [
        (IWAE(1), Trace_ELBO(), 1e-4),
        (RenyiELBO(0, 4), IWAE(4), 1e-4),
        (RenyiELBO(1, 4), Trace_ELBO(4), 1e-4),
        (RenyiELBO(1.0 - 1e-4, 4), Trace_ELBO(4), 3e-3),
        (RenyiELBO(1.0 + 1e-4, 4), Trace_ELBO(4), 3e-3),
        (CIWAE(0, 4), IWAE(4), 1e-4),
        (CIWAE(1, 4), Trace_ELBO(4), 1e-4),
        (MIWAE(1, 4), IWAE(4), 1e-4),
        (MIWAE(4, 1), Trace_ELBO(4), 1e-4),
        (FreeBits(0), TraceMeanField_ELBO(), 1e-4),
        (FreeBits(0.0, 4), TraceMeanField_ELBO(4), 1e-4),
        (DReG(1), STL(1), 1e-4),
    ],
    ids=repr,
)
def test_limits(one: Objective, other: Objective, tolerance: float) -> None:
    model, guide = fresh("functions")
    assert_close(ours(one, model, guide, X), ours(other, model, guide, X), tolerance)


@pytest.mark.parametrize(
    ("one", "other"),
    [(DReG(4), IWAE(4)), (STL(4), Trace_ELBO(4)), (STL(1), Trace_ELBO(1))],
    ids=repr,
)
def test_a_path_derivative_has_the_bounds_value_and_the_models_gradient(
    one: Objective, other: Objective
) -> None:
    model, guide = fresh("functions")
    mine, theirs = ours(one, model, guide, X), ours(other, model, guide, X)
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=0.0)
    pair = Pair.of(model, guide)
    roles = {"model": 0, "guide": 0}
    for leaf in {leaf for loss in (one(model, guide)(X),) for leaf in leaves(loss)}:
        a, b = mine[1][id(leaf)], theirs[1][id(leaf)]
        role = pair.name_of(leaf)[0]
        roles[role] += 1
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())) == (
            role == "model"
        )
    assert min(roles.values()) > 2


def test_bounds_are_ordered() -> None:
    """In one noise: the ELBO below CIWAE below IWAE; L_α falls with α; the mean of bounds of fewer
    draws lies lower.
    """
    model, guide = fresh("PyroModules")

    def bound(objective: Objective) -> float:
        return -float(ours(objective, model, guide, X)[0])

    assert bound(Trace_ELBO(4)) < bound(CIWAE(0.5, 4)) < bound(IWAE(4))
    by_alpha = [bound(RenyiELBO(alpha, 4)) for alpha in (-3.0, -1.0, 0.0, 0.5, 1.0, 2.0)]
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert bound(Trace_ELBO(4)) < bound(MIWAE(2, 2)) < bound(IWAE(4))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, -1.0])
def test_pyros_renyi_bound_at_one_image(alpha: float) -> None:
    """Pyro sums the images of a batch before it takes the logarithm: the same number at one image
    alone.
    """
    model, guide = fresh("PyroModules")
    theirs = infer.RenyiELBO(alpha, num_particles=6, max_plate_nesting=1, vectorize_particles=True)
    for row in range(4):
        mine = float(ours(RenyiELBO(alpha, 6), model, guide, X[row : row + 1])[0])
        torch.manual_seed(3)
        assert mine == pytest.approx(theirs.loss(model, guide, X[row : row + 1]), rel=1e-5)


# ---- an independent implementation of the path derivatives


def flow() -> tuple[Any, Any]:
    """A guide with an autoregressive flow, whose parameters enter log q as it is scored, not as it
    is drawn.
    """
    decoder, encoder, transform = (
        Decoder(),
        Encoder(),
        affine_autoregressive(LATENT, hidden_dims=[6]),
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.TransformedDistribution(dist.Normal(*encoder(x)).to_event(1), [transform])
            )

    return model, guide


def with_raw_tensors() -> tuple[Any, Any]:
    """Tensors that no module and no statement registers, and a recurrent network, which holds its
    weights twice.
    """
    decoder, network = Decoder(), nn.GRU(3, 4, batch_first=True)
    shift, log_scale = (torch.full((LATENT,), value, requires_grad=True) for value in (0.1, -0.2))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        last = network(x.reshape(len(x), -1, 3))[1][-1]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(last[:, :LATENT] + shift, log_scale.exp()).to_event(1))

    return model, guide


PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    **{form: (lambda form=form: fresh(form)) for form in FORMS},  # type: ignore[misc]
    "flow": flow,
    "raw tensors": with_raw_tensors,
}


def path_gradient(
    model: Any, guide: Any, num_particles: int, doubly: bool, seed: int = 3
) -> dict[int, Tensor]:
    """Σ_k v_k ∂z_k/∂φ + u_k ∂ log p_θ(x, z_k)/∂θ from leaves z_k, for images that are repeated.

    v_k = w̃_k² ∂ log w_k/∂z_k and u_k = w̃_k, or 1/K in the place of either weight. The engine has
    no part in it.
    """
    rows = X.repeat(num_particles, 1)
    with Pair.of(model, guide).store.scope():
        torch.manual_seed(seed)
        [(name, z)] = [
            (n, node["value"]) for n, node in sample_nodes(poutine.trace(guide).get_trace(rows))
        ]
        leaf = z.detach().clone().requires_grad_()
        traces = [
            poutine.trace(poutine.condition(each, {name: leaf})).get_trace(rows)
            for each in (model, guide)
        ]
        log_p, log_q = (
            sum(node["fn"].log_prob(node["value"]) for _, node in sample_nodes(t)) for t in traces
        )
        log_w = log_p - log_q
        (slope,) = torch.autograd.grad(log_w.sum(), leaf, retain_graph=True)
        once = torch.softmax(log_w.detach().reshape(num_particles, -1), 0).flatten()
        twice = once.square()
        if not doubly:
            once = twice = torch.full_like(once, 1.0 / num_particles)
        gradients = with_gradients(-(twice.unsqueeze(-1) * slope * z).sum() - (once * log_p).sum())[
            1
        ]
        return {key: gradient for key, gradient in gradients.items() if key != id(leaf)}


@pytest.mark.parametrize(("form", "objective"), thinned(PAIRS, [STL(3), DReG(3), STL(1)]))
def test_path_derivatives_are_those_at_leaves(
    form: str, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model, guide = PAIRS[form]()
    monkeypatch.setattr(Pair, "layout", lambda *_, **__: "repeat")
    _, found = ours(objective, model, guide, X)
    expected = path_gradient(model, guide, objective.num_particles, isinstance(objective, DReG))
    assert expected.keys() == found.keys() and len(expected) > 4
    for leaf, gradient in expected.items():
        torch.testing.assert_close(
            found[leaf], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
        )


class Moved(nn.Module):
    """z = (location + exp(log_scale) ε) / √2 with ε ~ N(x/√2, 1): at zeros the exact posterior of x
    ~ N(z, 1), z ~ N(0, 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.location, self.log_scale = (
            nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in "ab"
        )

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x), by a flow whose own tensors are parameters."""
        root = 0.5**0.5
        base = dist.Normal(x * root, 1.0).to_event(1)
        flow = dist.transforms.AffineTransform(self.location, self.log_scale.exp(), event_dim=1)
        last = dist.transforms.AffineTransform(0.0, root, event_dim=1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [flow, last]))


@pytest.mark.parametrize("objective", [STL(1), STL(3), DReG(3)], ids=repr)
def test_path_derivatives_at_the_exact_posterior_are_zero_in_each_draw(
    objective: Objective,
) -> None:
    """Of a flow's own parameters too (Roeder et al. 2017): without the score there is no noise;
    with it there is.
    """
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for goal, still in ((objective, True), (Trace_ELBO(), False), (IWAE(3), False)):
        moved = Moved()
        torch.manual_seed(0)
        goal(moved.model, moved.guide)(x).backward()
        for parameter in moved.parameters():
            assert parameter.grad is not None
            assert (float(parameter.grad.abs().max()) < 1e-12) == still


def test_held_tensors_are_constants_everywhere_and_others_are_not() -> None:
    held, free = (torch.ones(3, requires_grad=True) for _ in range(2))
    with Held([held]):
        value = torch.stack(
            [
                held * free,
                torch.cat([held[:2], free[:1]]),
                nn.functional.linear(held, torch.ones(3, 3), free),
            ]
        )
        own = held.detach().requires_grad_()  # a gradient of the program's own
        (inner,) = torch.autograd.grad((own**2 * held).sum(), own)
    assert {id(leaf) for leaf in leaves(value)} == {id(free)}
    assert torch.equal(inner, 2 * torch.ones(3)) and held.requires_grad


def test_without_gradients_the_guide_runs_once() -> None:
    model, guide = fresh("PyroModules")
    loss = STL(2)(model, guide)
    loss(X)
    calls = []
    handle = guide.net.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        loss(X)
    assert len(calls) == 1
    loss(X)
    assert len(calls) == 3
    handle.remove()


def test_running_statistics_count_a_batch_once() -> None:
    """BatchNorm in the guide: after a step of STL they are those after a step of the ELBO."""
    states = []
    for objective in (STL(), Trace_ELBO()):
        model, guide = fresh("PyroModules")
        guide.net.hidden = nn.Sequential(guide.net.hidden, nn.BatchNorm1d(16))
        with Pair.of(model, guide).active(training=True):
            objective(model, guide)(X).backward()
        states.append([buffer.clone() for buffer in guide.buffers()])
    assert len(states[0]) == 3 and int(states[0][-1]) == 1
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


# ---- the KL weight, the figures, scales


@pytest.mark.parametrize(("objective", "weight"), thinned(K_DRAWS, [0.0, 0.3, 2.0]))
def test_the_kl_weight_weighs_the_latent_terms(objective: Any, weight: float) -> None:
    """f of log p(x | z_k) + β [log p(z_k) − log q(z_k | x)]; at β = 0 the KL has no part in it."""
    model, guide = fresh("PyroModules")
    loss = objective(model, guide)
    loss.kl_weight.fill_(weight)
    torch.manual_seed(2)
    found = loss.measure(X, {})
    pair = Pair.of(model, guide)
    with pair.active():
        torch.manual_seed(2)
        terms = pair.run(X, {}, objective.num_particles)
    log_weights = terms.observed["x"].log_prob + weight * (
        terms.prior["z"].log_prob - terms.guide["z"].log_prob
    )
    torch.testing.assert_close(found.loss, -objective.bound(log_weights).sum())
    torch.testing.assert_close(found.reconstruction, terms.observed["x"].log_prob.mean(0).sum())
    torch.testing.assert_close(
        found.kl, (terms.guide["z"].log_prob - terms.prior["z"].log_prob).mean(0).sum()
    )


@pytest.mark.parametrize("objective", [IWAE(3), DReG(3), STL(3), FreeBits(0.1, 3)], ids=repr)
def test_a_subsampling_plate_scales_the_sum_over_images(objective: Objective) -> None:
    """As it scales an ELBO; the weights of a draw are one image's."""
    part, whole = scaled(1.0, 500), scaled(1.0, None)
    for a, b in zip(Pair.of(*part).modules, Pair.of(*whole).modules, strict=True):
        b.load_state_dict(a.state_dict())
    losses = []
    for pair in (part, whole):
        objective(*pair)(X)  # met, and named
    for mine, theirs in zip(tensors(part), tensors(whole), strict=True):
        theirs.data.copy_(mine.data)
    for pair in (part, whole):
        losses.append(float(ours(objective, *pair, X)[0]))
    assert losses[0] == pytest.approx(losses[1] * 500 / len(X), rel=1e-5)


def tensors(pair: tuple[Any, Any]) -> list[Tensor]:
    return Pair.of(*pair).tensors()


def test_a_scale_of_ones_own_is_refused() -> None:
    """In one program alone; in both it is the KL weight."""
    model, guide = scaled(0.3, None)
    _, plain = scaled(1.0, None)
    with pytest.raises(
        UserError, match=r"site 'z' of the model is scaled by 0\.3 .* use kl_weight"
    ):
        IWAE(3)(model, plain)(X)
    assert IWAE(3)(model, guide)(X).isfinite()


def test_free_bits_are_free() -> None:
    """Below λ a site's KL costs λ and pulls at nothing; above, it is the KL itself."""
    model, guide = fresh("PyroModules")
    exact = TraceMeanField_ELBO()(model, guide)
    torch.manual_seed(0)
    whole = exact.measure(X, {})
    mean_kl = float(whole.kl) / len(X)
    for bits in (0.5 * mean_kl, 2.0 * mean_kl):
        torch.manual_seed(0)
        found = FreeBits(bits)(model, guide).measure(X, {})
        torch.testing.assert_close(found.loss, max(bits * len(X), whole.kl) - whole.reconstruction)
        torch.testing.assert_close(found.kl, whole.kl)
    free = FreeBits(2.0 * mean_kl)(model, guide)
    plain = TraceMeanField_ELBO()(model, guide)
    plain.kl_weight.fill_(0.0)
    values = []
    for loss in (free, plain):
        torch.manual_seed(0)
        values.append(with_gradients(loss(X))[1])
    for leaf, gradient in values[0].items():
        torch.testing.assert_close(gradient, values[1][leaf])


# ---- what can't be


def planar() -> tuple[Any, Any]:
    """A flow of Pyro's that knows its own last draw alone."""
    model, _ = fresh("closures")
    encoder, transform = Encoder(), conditional_planar(LATENT, PIXELS, hidden_dims=[4])

    def guide(x: Tensor) -> None:
        base = dist.Normal(*encoder(x)).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [transform.condition(x)]))

    return model, guide


def with_dropout() -> tuple[Any, Any]:
    model, guide = fresh("PyroModules")
    guide.net.hidden = nn.Sequential(guide.net.hidden, nn.Dropout(0.5))
    return model, guide


def with_a_cache() -> tuple[Any, Any]:
    """A parameter that reaches the guide through a tensor made long before."""
    model, _ = fresh("closures")
    scale = torch.full((LATENT,), 0.3, requires_grad=True)
    made = scale.exp()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :LATENT], made).to_event(1))

    return model, guide


def delta() -> tuple[Any, Any]:
    model, _ = fresh("closures")
    encoder = Encoder()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(encoder(x)[0], event_dim=1))

    return model, guide


@pytest.mark.parametrize(
    ("objective", "pair", "sentence"),
    [
        (
            STL(),
            bernoulli_latents,
            "STL needs reparameterised draws, but site 'b' .*'Trace_ELBO' or 'IWAE",
        ),
        (DReG(3), bernoulli_latents, "DReG needs reparameterised draws, but site 'b'"),
        (FreeBits(), bernoulli_latents, "FreeBits needs reparameterised draws, but site 'b'"),
        (
            STL(),
            planar,
            "STL scores each draw a second time, .* site 'z' can only score its own last draw",
        ),
        (
            DReG(3),
            planar,
            "DReG scores each draw a second time, .* site 'z' can only score its own last draw",
        ),
        (
            STL(),
            with_a_cache,
            "STL .* depends on a tensor that requires gradients and that can't be kept constant",
        ),
        (STL(), with_dropout, "STL .* changes from run to run at the same z, such as with dropout"),
        (IWAE(3), delta, "IWAE weights its draws by q.* point mass .*'Trace_ELBO'"),
        (DReG(3), delta, "DReG weights its draws by q.* point mass"),
    ],
)
def test_refusals(objective: Objective, pair: Callable[[], tuple[Any, Any]], sentence: str) -> None:
    """Before anything is trained, one sentence with what to use instead."""
    with pytest.raises(UserError, match=sentence) as caught:
        fit(
            *pair(),
            X,
            objective=objective,
            num_epochs=1,
            progress=False,
            device="cpu",
            compile="off",
        )
    assert "\n" not in str(caught.value)


def test_what_can_be_scored_once_is_scored_once() -> None:
    """Planar flows and dropout train under every objective that scores a guide's own draws."""
    for make in (planar, with_dropout):
        for objective in (IWAE(3), Trace_ELBO()):
            assert torch.isfinite(objective(*make())(X))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("IWAE(0)", r"IWAE\(num_particles=0\): expected a whole number"),
        ("DReG(num_particles=2.5)", r"DReG\(num_particles=2\.5\)"),
        ("MIWAE(8, 0)", r"MIWAE\(k=0\)"),
        ("MIWAE(m=True)", r"MIWAE\(m=True\)"),
        ("RenyiELBO(alpha=inf)", r"RenyiELBO\(alpha=inf\)"),
        ("CIWAE(1.5)", r"CIWAE\(beta=1\.5\)"),
        ("FreeBits(-1)", r"FreeBits\(free_bits=-1\)"),
        ("IWAE(k=3)", "num_particles"),
    ],
)
def test_settings_are_checked(spec: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        registry.build("objective", spec)


def test_positions_of_settings() -> None:
    """The order that the papers' notation suggests, and defaults for all."""
    assert registry.build("objective", "IWAE(7)") == IWAE(num_particles=7)
    assert registry.build("objective", "RenyiELBO(0.5, 10)") == RenyiELBO(
        alpha=0.5, num_particles=10
    )
    assert registry.build("objective", "MIWAE(3, 4)").num_particles == 12
    assert registry.build("objective", "CIWAE(0.2, 6)") == CIWAE(beta=0.2, num_particles=6)
    assert registry.build("objective", "FreeBits(2.0)") == FreeBits(free_bits=2.0)
    for name in NAMES:
        assert registry.build("objective", name).num_particles >= 1


# ---- staged


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("IWAE", "plate"),
        ("DReG", "rows"),
        ("STL(2)", "repeat"),
        *(pytest.param(name, "plate", marks=pytest.mark.slow) for name in NAMES if name != "IWAE"),
        pytest.param("DReG", "repeat", marks=pytest.mark.slow),
    ],
)
def test_a_replayed_step_is_the_eager_step(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, figures and gradients to the last bit, at KL weights that the program was not traced
    with.
    """
    monkeypatch.setattr(Pair, "layout", lambda *_, **__: layout)
    loss = registry.build("objective", name)(*fresh("functions"))
    with loss.pair.active(training=True):
        eager = plain_step(loss, X, {})
        staged = StagedStep(eager, "graph")
        staged.prepare((X, {}))
        for weight in (1.0, 0.25, 0.0):
            loss.kl_weight.fill_(weight)
            found = []
            for step in (eager, staged):
                torch.manual_seed(5)
                sums, gradients = step.gradients(X.flip(0), {})
                found.append(
                    [
                        sums,
                        *(gradient.clone() for gradient in gradients or () if gradient is not None),
                    ]
                )
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_score_functions_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    for objective in ("IWAE(3)", "CIWAE(0.5, 3)"):
        model, guide = bernoulli_latents()
        history = fit(
            model,
            guide,
            X,
            objective=objective,
            num_epochs=2,
            progress=False,
            compile="graph",
            device="cpu",
        )
        assert history.compile == "graph" and all(math.isfinite(r.loss) for r in history.train)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason=missing_compiler(torch.device("cpu"))
)
def test_compiled_training_follows_the_eager_one() -> None:
    losses = {}
    for tier in ("off", "inductor"):
        history = fit(
            *fresh("PyroModules"), X, objective="DReG(4)", num_steps=20, batch_size=10, kl_warmup="Cyclical(cycles=2)",
            progress=False, compile=tier, device="cpu", seed=4,
        )  # fmt: skip
        assert history.compile == tier, history.note
        losses[tier] = torch.tensor([record.loss for record in history.train])
    torch.testing.assert_close(losses["inductor"], losses["off"], rtol=1e-5, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_by_name_raises_the_elbo(name: str) -> None:
    history = fit(
        *fresh("PyroModules"), binary_images(200), objective=name, num_epochs=15, batch_size=50, learning_rate=1e-2,
        progress=False, compile="graph", device="cpu",
    )  # fmt: skip
    assert history.compile == "graph"
    assert history.train[-1].elbo > history.train[0].elbo + 0.3
