"""The target in unconstrained u: it is the pair's own density, with the right Jacobian, whatever
the sites and the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.transforms import planar
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae import Pair, UserError, fit
from pyro_vae.evaluation.traced import Target, TracedTarget, make_target
from pyro_vae.evaluation.unconstrained import Unconstrained
from pyro_vae.pair.layouts import LAYOUTS
from tests.support import pairs
from tests.support.exact import Exact, ppca
from tests.support.spaces import SPACES, off_gamma

CASES: dict[str, Callable[[], Exact]] = {"ppca": lambda: ppca(widen=1.2), **SPACES}


@contextmanager
def space_of(
    model: Any, guide: Any, x: Tensor, num_chains: int
) -> Iterator[tuple[Unconstrained, Tensor, dict[str, Tensor]]]:
    """The target for these images, inside ``pair.active``."""
    pair, fields = Pair.of(model, guide), {"index": torch.arange(len(x))}
    with torch.no_grad(), pair.active(training=False):
        yield Unconstrained(pair, x, fields, num_chains), x, fields


def _log_det(draws: dict[Any, Tensor]) -> Tensor | float:
    """Σ log |dz/du| over the sites whose support is constrained."""
    total: Tensor | float = 0.0
    for fn, z in draws.items():
        to_z = biject_to(fn.support)
        if isinstance(fn, dist.Gamma | dist.Dirichlet):
            total = total + to_z.log_abs_det_jacobian(to_z.inv(z), z)
    return total


@pytest.mark.parametrize("name", CASES)
def test_terms_are_the_kernels_with_the_log_determinant(name: str) -> None:
    case = CASES[name]()
    with space_of(case.model, case.guide, case.x, 6) as (space, x, fields):
        torch.manual_seed(0)
        u = space.draw(x, fields)
        torch.manual_seed(0)
        kernel = space.pair.run(x, fields, 6)
        log_q, log_p = space.terms(u, x, fields)
        own = sum(site.log_prob for site in kernel.guide.values()) + _log_det(
            {site.fn: site.value for site in kernel.guide.values()}
        )
    assert u.shape[:2] == log_q.shape == log_p.shape == (6, len(x))
    torch.testing.assert_close(log_q, own, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_p - log_q, kernel.log_weights(), rtol=1e-9, atol=1e-9)


def test_densities_integrate_over_u() -> None:
    """∫ q(u | x) du = 1 and ∫ p(x, u) du = p(x): the Jacobian is that of u, by the trapezoid rule."""
    case = off_gamma(9)
    grid = torch.linspace(-14.0, 6.0, 4001, dtype=torch.float64)
    with space_of(case.model, case.guide, case.x, len(grid)) as (space, x, fields):
        log_q, log_p = space.terms(grid[:, None, None].expand(-1, len(x), 1), x, fields)
    torch.testing.assert_close(
        torch.trapezoid(log_q.exp(), grid, dim=0), torch.ones_like(case.log_px), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        torch.trapezoid(log_p.exp(), grid, dim=0).log(), case.log_px, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_every_layout_has_the_same_values(name: str) -> None:
    case = CASES[name]()
    with space_of(case.model, case.guide, case.x, 3) as (space, x, fields):
        u = space.draw(x, fields)
        expected = space.terms(u, x, fields)
        for space.layout in ["repeat"] if name == "inner plate" else LAYOUTS:
            for found, value in zip(space.terms(u, x, fields), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)
            assert space.draw(x, fields).shape == u.shape


@pytest.mark.parametrize("name", CASES)
def test_u_of_given_latents_gives_them_back(name: str) -> None:
    case = CASES[name]()
    inner = name == "inner plate"
    with space_of(case.model, case.guide, case.x, 2) as (space, x, fields):
        drawn = poutine.trace(space.pair.guide).get_trace(x, fields)
        nodes = {n: drawn.nodes[n] for n in space.slices}
        values = {
            n: node["value"].movedim(-1, 0) if inner else node["value"] for n, node in nodes.items()
        }
        u = space.locate(x, fields, values)
        log_q, _ = space.terms(u, x, fields)
    own = sum(node["fn"].log_prob(node["value"]) for node in nodes.values())
    own = own + _log_det({node["fn"]: node["value"] for node in nodes.values()})
    assert torch.equal(u[0], u[1])
    torch.testing.assert_close(log_q[0], own.sum(0) if inner else own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_slopes(name: str) -> None:
    case = CASES[name]()
    with space_of(case.model, case.guide, case.x[:4], 2) as (space, x, fields):
        torch.manual_seed(2)
        u = space.draw(x, fields)
        *_, grad_q, grad_p = space.differentiate(u, x, fields)
        direction, h = torch.randn_like(u), 1e-6
        above, below = (space.terms(u + s * h * direction, x, fields) for s in (1, -1))
    for grad, up, down in zip((grad_q, grad_p), above, below, strict=True):
        torch.testing.assert_close(
            (grad * direction).sum(-1), (up - down) / (2 * h), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("form", pairs.FORMS)
def test_the_staged_target_is_the_eager_one(form: str) -> None:
    model, guide = pairs.fresh(form)
    x = pairs.binary_images(20)
    fit(model, guide, x, num_steps=2, batch_size=10, progress=False, device="cpu", compile="off")
    with space_of(model, guide, x, 4) as (space, x, fields):
        staged, _ = make_target(space, "auto", (x, fields), (x.flip(0), fields))
        assert isinstance(staged, TracedTarget)
        other = x.flip(0)
        u = space.draw(other, fields)
        eager = Target(space).tile(other, fields)
        expected, tile = eager.point(u), staged.tile(other, fields)
        found = tile.point(u)
        for part in ("log_q", "log_p", "grad_q", "grad_p"):
            torch.testing.assert_close(
                getattr(found, part), getattr(expected, part), rtol=1e-5, atol=1e-5
            )
        for ours, theirs in zip(tile.gradients(u), eager.gradients(u), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_encoder_runs_once_a_tile() -> None:
    """Its three matrix products stand before u; a gradient takes the decoder's two, forward and
    back, and no log density.
    """
    model, guide = pairs.fresh("PyroModules")
    with space_of(model, guide, pairs.binary_images(8), 4) as (space, x, fields):
        staged = TracedTarget(space, "graph", (x, fields), (x, fields))
    graphs = [(part.prologue, part.body) for part in staged.parts]
    names = [[[str(n.target) for n in graph.graph.nodes] for graph in part] for part in graphs]
    products = [
        [sum(n in ("aten.addmm.default", "aten.mm.default") for n in graph) for graph in part]
        for part in names
    ]
    assert products == [[3, 4], [3, 4]]
    densities = [sum("binary_cross_entropy" in n for n in part[1]) for part in names]
    assert densities == [1, 0]


def test_a_support_may_depend_on_another_latent() -> None:
    """b ~ Uniform(0, a): u_b maps onto (0, a), and ∫∫ q(u) du = 1."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(x.new_tensor(3.0), 2.0))
            pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(x.new_tensor(2.0), 1.0))
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
            pyro.sample("x", dist.Normal(b.unsqueeze(-1), 1.0).to_event(1), obs=x)

    grid = torch.linspace(-12.0, 12.0, 241, dtype=torch.float64)
    u = torch.cartesian_prod(grid, grid)[:, None, :]
    with space_of(model, guide, torch.ones(1, 1, dtype=torch.float64), len(u)) as (
        space,
        x,
        fields,
    ):
        log_q, _ = space.terms(u, x, fields)
    assert float(log_q.exp().sum() * 0.1**2) == pytest.approx(1.0, abs=1e-4)


# ---- refusals


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _planar() -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = planar(2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return _model, guide


def _point_mass() -> tuple[Any, Any]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x).to_event(1))

    return _model, guide


def _discrete() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))
            pyro.sample(
                "x", dist.Normal(k.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))

    return model, guide


def _subsampled() -> tuple[Any, Any]:
    def program(x: Tensor, observe: bool) -> None:
        with pyro.plate("data", 600, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def model(x: Tensor) -> None:
        program(x, True)

    def guide(x: Tensor) -> None:
        program(x, False)

    return model, guide


def _scaled() -> tuple[Any, Any]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    return _model, guide


def _empty() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x.new_zeros(2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pass

    return model, guide


REFUSED = {
    "can only score its own": _planar,
    "point mass": _point_mass,
    "discrete": _discrete,
    "subsamples": _subsampled,
    "scaled by 0.5": _scaled,
    "no latent site, so its log weights": _empty,
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_pair_without_such_a_density_is_refused(words: str) -> None:
    model, guide = REFUSED[words]()
    with (
        pytest.raises(UserError, match=words) as error,
        space_of(model, guide, torch.randn(6, 2), 2),
    ):
        pass
    assert len(str(error.value).splitlines()) == 1


def test_a_site_is_scored_with_what_its_statement_passes_on() -> None:
    """At any z, so that AIS may move it."""

    class Told(dist.Normal):
        def __call__(self, shift: Tensor) -> Any:
            return self.rsample() + shift

        def log_prob(self, value: Tensor, shift: Tensor) -> Any:
            return super().log_prob(value - shift)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Told(torch.zeros(len(x), dtype=x.dtype), 1.0), x[:, 0] / 2)

    x = torch.randn(5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = Pair.of(model, guide)
    with pair.active(training=False):
        assert not pair.structure(x, {}).own_draws_only
