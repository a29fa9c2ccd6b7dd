"""Discrete latents that the guide has and asks to enumerate: as stock Pyro's TraceEnum_ELBO, staged
as eager, and scored exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import UserError
from pyro_vae.objectives import FreeBits, Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair

D = torch.float64
PIXELS, VALUES, LATENT = 5, 3, 2
X = (torch.rand(6, PIXELS, generator=torch.Generator().manual_seed(1)) < 0.4).to(D)
Made = tuple[Callable[..., Any], Callable[..., Any], nn.Module]


def join(*parts: Tensor) -> Tensor:
    """Along the last dimension, the others broadcast."""
    shape = torch.broadcast_shapes(*(each.shape[:-1] for each in parts))
    return torch.cat([each.expand(*shape, each.shape[-1]) for each in parts], -1)


def nets(**sizes: tuple[int, int]) -> nn.ModuleDict:
    """Linear maps in float64."""
    torch.manual_seed(2)
    return nn.ModuleDict({name: nn.Linear(*size, dtype=D) for name, size in sizes.items()})


def normal(both: Tensor) -> Any:
    """N(loc, scale) of the two halves."""
    loc, raw = both.chunk(2, -1)
    return dist.Normal(loc, raw.exp()).to_event(1)


STANDARD = dist.Normal(torch.zeros(LATENT, dtype=D), 1.0).to_event(1)
UNIFORM = torch.full((VALUES,), 1 / VALUES, dtype=D)


def z_given_y() -> Made:
    """M2: q(y | x) q(z | x, y)."""
    net = nets(y=(PIXELS, VALUES), z=(PIXELS + VALUES, 2 * LATENT), x=(LATENT + VALUES, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(UNIFORM))
            z = pyro.sample("z", STANDARD)
            pyro.sample("x", dist.Bernoulli(logits=net["x"](join(z, y))).to_event(1), obs=x)

    @infer.config_enumerate
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=net["y"](x)))
            pyro.sample("z", normal(net["z"](join(x, y))))

    return model, guide, net


def y_given_z() -> Made:
    """q(z | x) q(y | x, z): the class is told from the code, whose prior it is drawn by as well."""
    net = nets(
        z=(PIXELS, 2 * LATENT),
        y=(PIXELS + LATENT, VALUES),
        prior=(LATENT, VALUES),
        x=(LATENT + VALUES, PIXELS),
    )

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", STANDARD)
            y = pyro.sample("y", dist.Categorical(logits=net["prior"](z)))
            hot = torch.eye(VALUES, dtype=D)[y]
            pyro.sample("x", dist.Bernoulli(logits=net["x"](join(z, hot))).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(net["z"](x)))
            law = dist.Categorical(logits=net["y"](join(x, z)))
            pyro.sample("y", law, infer={"enumerate": "parallel"})

    return model, guide, net


def two_classes() -> Made:
    """a → y → b → z, two of which are enumerated, and a pixel plate to the left of the data."""
    net = nets(
        a=(PIXELS, 2 * LATENT),
        y=(PIXELS + LATENT, VALUES),
        b=(PIXELS + VALUES, 1),
        z=(PIXELS + VALUES + 1, 2 * LATENT),
        x=(2 * LATENT + VALUES + 1, PIXELS),
    )

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        pixels = pyro.plate("pixels", PIXELS, dim=-2)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", STANDARD)
            y = pyro.sample("y", dist.OneHotCategorical(UNIFORM))
            b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * y[..., 0]))
            z = pyro.sample("z", STANDARD)
            logits = net["x"](join(a, y, b.unsqueeze(-1), z))
            with pixels:
                # pixels, which are the last dimension, to the plate's
                moved = logits.squeeze(-3).movedim(-1, -2) if logits.dim() > 2 else logits.T
                pyro.sample("x", dist.Bernoulli(logits=moved), obs=x.T)

    @infer.config_enumerate
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", normal(net["a"](x)))
            y = pyro.sample("y", dist.OneHotCategorical(logits=net["y"](join(x, a))))
            b = pyro.sample("b", dist.Bernoulli(logits=net["b"](join(x, y)).squeeze(-1)))
            pyro.sample("z", normal(net["z"](join(x, y, b.unsqueeze(-1)))))

    return model, guide, net


def all_discrete() -> Made:
    """y and b, both enumerated: every number is exact."""
    net = nets(y=(PIXELS, VALUES), b=(PIXELS + VALUES, 1), x=(VALUES + 1, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(UNIFORM))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * y[..., 1]))
            logits = net["x"](join(y, b.unsqueeze(-1)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    @infer.config_enumerate
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=net["y"](x)))
            pyro.sample("b", dist.Bernoulli(logits=net["b"](join(x, y)).squeeze(-1)))

    return model, guide, net


CASES = {each.__name__: each for each in (z_given_y, y_given_z, two_classes, all_discrete)}
every_case = pytest.mark.parametrize("case", CASES)


def loss_and_gradients(loss: Callable[[], Tensor], net: nn.Module, seed: int = 3) -> list[Tensor]:
    """The loss, then every parameter's gradient."""
    torch.manual_seed(seed)
    value = loss()
    found = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    return [value.detach(), *(g if g is not None else torch.zeros(()) for g in found)]


def stock(model: Any, guide: Any) -> Callable[[], Tensor]:
    """Pyro's own loss."""
    elbo = infer.TraceEnum_ELBO(max_plate_nesting=2)
    return lambda: elbo.differentiable_loss(model, guide, X)


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """Up to rounding."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.to(a), rtol=1e-11, atol=1e-11)


@every_case
def test_loss_and_every_gradient_are_stock_pyros(case: str) -> None:
    model, guide, net = CASES[case]()
    ours = Trace_ELBO()(model, guide)
    for seed in range(3):
        assert_close(
            loss_and_gradients(lambda: ours(X), net, seed),
            loss_and_gradients(stock(model, guide), net, seed),
        )


@pytest.mark.parametrize(
    ("case", "staged"),
    [
        ("y_given_z", "graph"),
        ("two_classes", "graph"),
        pytest.param("y_given_z", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_staged_step_is_an_eager_one(case: str, staged: str) -> None:
    found = []
    for tier in ("off", staged):
        model, guide, _ = CASES[case]()
        torch.manual_seed(0)
        history = pv.fit(
            model, guide, X, "Trace_ELBO", num_steps=3, compile=tier, progress=False, seed=4
        )
        assert history.compile == tier
        found.append([record.loss for record in history.train])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@every_case
def test_many_draws_have_one_value_in_every_layout(case: str) -> None:
    model, guide, _ = CASES[case]()
    pair = Pair.of(model, guide)
    with pair.active(training=False), torch.no_grad():
        found = []
        for layout in ("plate", "repeat"):
            torch.manual_seed(5)
            terms = pair.run(X, {}, 7, layout, every_value=True)
            shares = terms.shares
            assert shares is not None
            torch.testing.assert_close(
                shares.unflatten(0, (-1, 7)).sum(0), torch.ones(7, len(X), dtype=D)
            )
            found.append((terms.log_weights(), terms.expected()))
        assert found[0][0].shape == (7, len(X))
        torch.testing.assert_close(found[0][0], found[1][0])
        for kind in ("observed", "prior", "guide"):
            for name, site in getattr(found[0][1], kind).items():
                torch.testing.assert_close(site.log_prob, getattr(found[1][1], kind)[name].log_prob)


def test_what_is_discrete_alone_is_exact() -> None:
    """log p(x) by hand, over all values; the closed KLs have the same loss and gradient."""
    model, guide, net = all_discrete()
    y = torch.eye(VALUES, dtype=D).repeat_interleave(2, 0)
    b = torch.tensor([0.0, 1.0], dtype=D).repeat(VALUES)
    prior = dist.Bernoulli(0.2 + 0.5 * y[:, 1]).log_prob(b) - torch.tensor(VALUES, dtype=D).log()
    decoder = net["x"]  # type: ignore[index]
    seen = dist.Bernoulli(logits=decoder(join(y, b.unsqueeze(-1)))).log_prob(X.unsqueeze(1))
    exact = torch.logsumexp(prior + seen.sum(-1), -1).detach()
    result = pv.log_marginal(model, guide, X, num_samples=50)
    torch.testing.assert_close(result.log_px, exact)
    assert result.protocol["estimator"] == "exact" and result.se_mc == 0.0
    expected = loss_and_gradients(stock(model, guide), net)
    closed = TraceMeanField_ELBO()(model, guide)
    assert_close(loss_and_gradients(lambda: closed(X), net), expected)


@pytest.mark.parametrize("case", ["z_given_y", "y_given_z", "two_classes"])
def test_log_marginal_is_the_sum_over_the_values(case: str) -> None:
    """Against draws of the prior, without the guide; and against the guide's values drawn."""
    model, guide, _ = CASES[case]()
    drawn = poutine.infer_config(guide, lambda site: {"enumerate": None})
    summed, sampled = (pv.log_marginal(model, each, X, num_samples=1000) for each in (guide, drawn))
    prior = pv.log_marginal(model, guide, X, num_samples=10000, proposal="prior")
    for other in (sampled, prior):
        error = (summed.se**2 + other.se**2).sqrt()
        assert bool(((summed.log_px - other.log_px).abs() < 5 * error).all())
    assert float(summed.se.mean()) < float(sampled.se.mean())


@pytest.mark.parametrize("case", ["z_given_y", "two_classes"])
def test_closed_kls_have_the_same_mean(case: str) -> None:
    model, guide, _ = CASES[case]()
    means = []
    for kind in (Trace_ELBO, TraceMeanField_ELBO):
        torch.manual_seed(6)
        with torch.no_grad():
            runs = torch.stack([kind(50)(model, guide)(X) for _ in range(20)])
        means.append((runs.mean(), runs.std() / 20**0.5))
    (a, of_a), (b, of_b) = means
    assert abs(float(a - b)) < 4 * float((of_a**2 + of_b**2).sqrt())
    assert Pair.of(model, guide).structure(X, {}).analytic[-2:] == (
        ("y", "z") if case == "z_given_y" else ("b", "z")
    )


def test_free_bits_are_of_the_weighted_kl() -> None:
    """At λ = 0 the ELBO; above every KL the reconstruction and λ a site and image."""
    model, guide, net = z_given_y()
    free, elbo = FreeBits(0.0)(model, guide), TraceMeanField_ELBO()(model, guide)
    assert_close(loss_and_gradients(lambda: free(X), net), loss_and_gradients(lambda: elbo(X), net))
    torch.manual_seed(7)
    with torch.no_grad():
        found = FreeBits(100.0)(model, guide).measure(X, {})
    expected = -found.reconstruction + 2 * 100.0 * len(X)
    torch.testing.assert_close(found.loss, expected)


def test_a_sum_beside_a_draw_is_unbiased() -> None:
    """One class enumerated, another drawn with a score function: the mean gradient is that of both
    enumerated.
    """
    model, guide, net = all_discrete()
    drawn = poutine.infer_config(
        guide, lambda site: {"enumerate": None} if site["name"] == "b" else {}
    )
    assert Pair.of(model, drawn).structure(X, {}).score_function == ("b",)
    exact = loss_and_gradients(stock(model, guide), net)
    ours = Trace_ELBO(50)(model, drawn)
    runs = [loss_and_gradients(lambda: ours(X), net, seed) for seed in range(40)]
    for own, right in zip(zip(*runs, strict=True), exact, strict=True):
        each = torch.stack(list(own))
        error = each.std(0) / len(runs) ** 0.5
        assert bool(((each.mean(0) - right).abs() <= 5 * error + 1e-10).all())
    pv.fit(model, drawn, X, "Trace_ELBO", num_steps=1, progress=False)  # the check accepts it


def test_a_value_without_probability_leaves_no_nan() -> None:
    """q(y | x) = 0 of one value, as where a label is known."""
    net = nets(x=(VALUES, PIXELS), y=(PIXELS, VALUES))
    known = torch.tensor([0.0, 0.0, -torch.inf], dtype=D)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(UNIFORM))
            pyro.sample("x", dist.Bernoulli(logits=net["x"](y)).to_event(1), obs=x)

    @infer.config_enumerate
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OneHotCategorical(logits=net["y"](x) + known))

    found = loss_and_gradients(lambda: Trace_ELBO()(model, guide)(X), net)
    expected = loss_and_gradients(stock(model, guide), net)
    assert_close(found, expected)
    assert all(bool(each.isfinite().all()) for each in found)
    likelihood = dist.Bernoulli(logits=net["x"](torch.eye(VALUES, dtype=D)))
    exact = likelihood.log_prob(X.unsqueeze(1)).sum(-1).logsumexp(-1) - torch.log(
        torch.tensor(VALUES, dtype=D)
    )
    # the sum has every value, that which the guide never draws as well
    torch.testing.assert_close(pv.log_marginal(model, guide, X).log_px, exact.detach())


def test_a_site_summed_out_beside_one_enumerated() -> None:
    """The model's own class c, which the guide lacks, and y, which it enumerates."""
    net = nets(y=(PIXELS, VALUES), z=(PIXELS + VALUES, 2 * LATENT), x=(LATENT + VALUES, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(UNIFORM))
            c = pyro.sample("c", dist.Bernoulli(0.2 + 0.3 * y[..., 0]))
            z = pyro.sample("z", dist.Normal(c.unsqueeze(-1) * y[..., :2], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net["x"](join(z, y))).to_event(1), obs=x)

    @infer.config_enumerate
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=net["y"](x)))
            pyro.sample("z", normal(net["z"](join(x, y))))

    assert_close(
        loss_and_gradients(lambda: Trace_ELBO()(model, guide)(X), net),
        loss_and_gradients(stock(infer.config_enumerate(model), guide), net),
    )
    summed = pv.log_marginal(model, guide, X, num_samples=2000, compile="off")
    prior = pv.log_marginal(model, guide, X, num_samples=20000, proposal="prior", compile="off")
    error = (summed.se**2 + prior.se**2).sqrt()
    assert bool(((summed.log_px - prior.log_px).abs() < 5 * error).all())


def test_beside_a_factor_of_the_guide_it_is_pyros_own() -> None:
    """What the guide observes is Pyro's own affair: its TraceEnum_ELBO trains such a pair."""
    model, _, net = z_given_y()
    to_y, to_z = net["y"], net["z"]  # type: ignore[index]

    @infer.config_enumerate
    def factored(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=to_y(x)))
            pyro.sample("z", normal(to_z(join(x, y))))
            pyro.factor("weight", to_y(x).square().sum(-1), has_rsample=True)

    assert_close(
        loss_and_gradients(lambda: Trace_ELBO()(model, factored)(X), net),
        loss_and_gradients(stock(model, factored), net),
    )


# ---- what is refused


@pytest.mark.parametrize("objective", ["IWAE", "RenyiELBO", "MIWAE", "CIWAE", "STL", "DReG"])
def test_bounds_of_weights_refuse_by_name(objective: str) -> None:
    model, guide, _ = z_given_y()
    with pytest.raises(UserError, match=f"'y' .*{objective} .*'Trace_ELBO'"):
        pv.fit(model, guide, X, objective, num_steps=1, progress=False)


def test_a_request_that_cannot_be_met_is_told_and_scored_by_draws() -> None:
    """A program that can't run at all values at once; a masked site; one with ``num_samples``."""
    model, guide, net = z_given_y()

    def narrow(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=net["y"](x)))  # type: ignore[index]
            both = torch.cat((x, y), -1)
            pyro.sample("z", normal(net["z"](both)))  # type: ignore[index]

    few = {"enumerate": "parallel", "num_samples": 2}
    for other, words in (
        (infer.config_enumerate(narrow), "broadcast_tensors"),
        (poutine.infer_config(narrow, lambda site: few if site["name"] == "y" else {}), "num_s"),
        (half_masked(guide), "masked"),
    ):
        assert words in str(pv.check_pair(model, other, X))
        with pytest.raises(UserError, match=f"'y'.*TraceEnum_ELBO.*{words}"):
            pv.fit(model, other, X, "Trace_ELBO", num_steps=1, progress=False)
        if words != "masked":
            a, b = (pv.log_marginal(model, each, X, num_samples=2000) for each in (other, guide))
            assert abs(a.mean - b.mean) < 5 * (a.se_mc**2 + b.se_mc**2) ** 0.5


def half_masked(guide: Callable[..., Any]) -> Callable[..., Any]:
    """Half of its rows have no density."""

    def program(x: Tensor) -> None:
        with poutine.mask(mask=torch.arange(len(x)) % 2 > 0):
            guide(x)

    return program
