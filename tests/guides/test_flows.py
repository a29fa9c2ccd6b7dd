"""Flows: densities that integrate to one, inverses, Jacobians by autograd, and what importing zuko
must not do.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import distributions as dist
from torch import Tensor
from torch.autograd.functional import jacobian

from pyro_vae import guides, models
from pyro_vae.errors import UserError

GUIDES: dict[str, Any] = {
    "iaf": lambda dim: guides.IAF((3,), dim, depth=3, width=8, context_dim=5, hidden=(6,)),
    "nsf": lambda dim: guides.NSF((3,), dim, depth=2, bins=4, width=8, context_dim=5, hidden=(6,)),
    "householder": lambda dim: guides.Householder((3,), dim, depth=3, hidden=(6,)),
    "planar": lambda dim: guides.Planar((3,), dim, depth=3, hidden=(6,)),
}
PRIORS: dict[str, Any] = {
    flow: lambda dim, flow=flow: models.FlowPrior(dim, flow, depth=2, width=8)
    for flow in ("RealNVP", "MAF", "NSF")
}
INVERTIBLE = [name for name in GUIDES if name != "planar"]


def law(name: str, dim: int = 2, batch: int = 3) -> Any:
    """A flow far from the identity, in float64: a guide's q(z | x) of ``batch`` images, or a prior."""
    torch.manual_seed(0)
    part = (GUIDES | PRIORS)[name](dim).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(1.5).add_(0.05 * torch.randn_like(parameter))
    return part() if name in PRIORS else part.build(part.local(torch.randn(batch, 3).double()))


def grid(half: float = 14.0, nodes: int = 281) -> tuple[Tensor, float]:
    """Nodes on a square, ``(n², 2)``, and the area of each."""
    line = torch.linspace(-half, half, nodes).double()
    return torch.cartesian_prod(line, line), float(line[1] - line[0]) ** 2


@pytest.mark.parametrize("name", [*INVERTIBLE, *PRIORS])
def test_the_density_integrates_to_one(name: str) -> None:
    z, area = grid()
    with torch.no_grad():
        fn = law(name, batch=1)
        assert float(fn.log_prob(z).exp().sum()) * area == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_foreign_z_are_scored_by_inversion(name: str) -> None:
    fn = law(name, dim=4)
    z = fn.rsample(torch.Size([7]))
    assert z.shape == (7, 3, 4)
    torch.testing.assert_close(fn.log_prob(z.clone()), fn.log_prob(z), rtol=1e-8, atol=1e-8)


def test_a_planar_flow_scores_no_z_but_its_last_draw() -> None:
    fn = law("planar")
    z = fn.rsample()
    assert bool(fn.log_prob(z).isfinite().all())
    with pytest.raises(KeyError, match="cache"):
        fn.log_prob(z.clone())


def base_and_map(name: str, fn: Any) -> tuple[Any, Any]:
    """The base of a guide's flow and the map from it, from the library's own parts."""
    if name == "nsf":
        return fn.dist.base, fn.dist.transform.inv
    return fn.base_dist, dist.transforms.ComposeTransform(list(fn.transforms))


@pytest.mark.parametrize("name", GUIDES)
def test_the_density_of_a_draw_is_that_of_its_noise_over_the_jacobian(name: str) -> None:
    fn = law(name, dim=3, batch=1)
    torch.manual_seed(1)
    z = fn.rsample()
    log_prob = fn.log_prob(z)
    torch.manual_seed(1)
    base, forward = base_and_map(name, fn)
    start = base.rsample()
    torch.testing.assert_close(forward(start), z)
    volume = jacobian(forward, start).reshape(3, 3).slogdet().logabsdet
    torch.testing.assert_close(log_prob, base.log_prob(start) - volume)


@pytest.mark.parametrize("name", GUIDES)
def test_own_draws_weigh_one_under_any_density(name: str) -> None:
    """E_q[h(z) / q(z)] = 1 for a density h, inside q's bulk so that the ratio is bounded: 5
    standard errors.
    """
    fn = law(name, batch=1)
    with torch.no_grad():
        z = fn.rsample(torch.Size([8000]))
        inside = dist.Normal(z.mean(0), 0.4 * z.std(0)).to_event(1)
        ratio = (inside.log_prob(z) - fn.log_prob(z)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / 8000**0.5)


@pytest.mark.parametrize("name", [*GUIDES, *PRIORS])
def test_one_latent_is_a_flow_too(name: str) -> None:
    fn = law(name, dim=1, batch=2)
    z = fn.expand(torch.Size([5, 2])).rsample()
    assert z.shape == (5, 2, 1) and fn.log_prob(z).shape == (5, 2)


@pytest.mark.parametrize("name", PRIORS)
def test_a_flow_prior_draws_from_its_own_density(name: str) -> None:
    """The draws' share of a box is the density's integral over it."""
    with torch.no_grad():
        fn = law(name)
        z = fn.sample((6000,))
        nodes, area = grid(half=6.0)
        inside = ((nodes - z.mean(0)).abs() < z.std(0)).all(-1)
        share = float(fn.log_prob(nodes[inside]).exp().sum()) * area
    found = float(((z - z.mean(0)).abs() < z.std(0)).all(-1).double().mean())
    assert found == pytest.approx(
        share, abs=5 * (share * (1 - share) / 6000) ** 0.5 + 0.02
    )  # the grid's edges: 0.02


def test_a_householder_flow_is_a_gaussian_of_the_same_volume() -> None:
    """z = H(μ + σε): mean Hμ, covariance H diag σ² Hᵀ with det = Π σ²."""
    fn = law("householder", dim=3, batch=1)
    turn = fn.transforms[0](torch.eye(3).double().unsqueeze(1)).squeeze(1).T
    torch.testing.assert_close(turn @ turn.T, torch.eye(3).double())
    base = fn.base_dist.base_dist
    exact = dist.MultivariateNormal(base.loc @ turn.T, (turn * base.scale.square()) @ turn.T)
    z = torch.randn(5, 3).double()
    torch.testing.assert_close(fn.log_prob(z), exact.log_prob(z))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: models.FlowPrior(2, "RealNPV"), "did you mean 'RealNVP'"),
        (lambda: models.FlowPrior(2, depth=0), "depth=0"),
        (lambda: models.FlowPrior(2, width=0), "width"),
        (lambda: guides.IAF((3,), 2, depth=0), "depth=0"),
        (lambda: guides.IAF((3,), 9, width=8), "latent_dim = 9"),
        (lambda: guides.IAF((3,), 2, context_dim=0), "context_dim"),
        (lambda: guides.NSF((3,), 2, bins=0), "bins=0"),
        (
            lambda: guides.IAF((3,), 2, width=(8, 8)),
            r"IAF\(width=\(8, 8\)\): expected a whole number",
        ),
        (lambda: models.FlowPrior(2, width=(8, 8)), r"width=\(8, 8\): expected a whole number"),  # type: ignore[arg-type]
        (lambda: guides.Planar((3,), 2, depth=True), "depth=True"),
        (lambda: guides.Householder((3,), 2, depth=1.5), "depth=1.5"),
    ],
)
def test_refusals_are_a_line(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


def test_importing_zuko_leaves_argument_checks_on() -> None:
    """zuko switches them off for all of torch.distributions; in a process of its own, as other
    tests set them too.
    """
    program = (
        "import torch, pyro_vae.nn.flows; print(torch.distributions.Distribution._validate_args)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_one_file_imports_zuko() -> None:
    root = Path(__file__).parents[2]
    files = [
        p
        for folder in ("pyro_vae", "models", "guides", "tests")
        for p in (root / folder).rglob("*.py")
    ]
    found = [
        p.name for p in files if re.search(r"^\s*(import|from) zuko", p.read_text(), re.MULTILINE)
    ]
    assert found == ["flows.py"]
