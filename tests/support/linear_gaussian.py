"""Two linear-Gaussian pairs in float64, one and two latent levels, whose bounds of K draws are
quadratures.

Every row of a batch has parameters of its own, at one value: a batch of R rows of one image gives R
independent gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.objectives import Objective

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
X = 0.9  # the one image, of one pixel
NOISE = 0.7  # σ of p(x | z)
Densities = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor, Tensor]]


class Scored(dist.Normal):
    """A normal law that does not say how its draws depend on its parameters."""

    has_rsample = False


@dataclass(frozen=True)
class Case:
    """A pair of R rows, its parameters' values, and log p(x | z), log p(z), log q(z | x) at z_φ(ε)
    as plain formulas.
    """

    names: tuple[str, ...]  # of the parameters: of the model first
    values: dict[str, float]
    densities: Densities
    levels: int
    build: Callable[[dict[str, nn.Parameter], dict[str, Any]], tuple[Any, Any]] = field(repr=False)
    scored: tuple[str, ...] = ()  # the guide's sites without a path

    def at(self, **values: float) -> Case:
        """The same pair at other values."""
        return replace(self, values={**self.values, **values})

    def gradients(
        self, objective: Objective, rows: int, kl_weight: float = 1.0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The bound ``(R,)`` summed over rows, and R gradients of it, ``(R, P)``."""
        tables = {
            name: nn.Parameter(torch.full((rows,), value, **DOUBLE))
            for name, value in self.values.items()
        }
        laws = {site: Scored if site in self.scored else dist.Normal for site in ("z", "u")}
        loss = objective(*self.build(tables, laws)).double()
        loss.kl_weight.fill_(kl_weight)
        x, index = torch.full((rows, 1), X, **DOUBLE), torch.arange(rows)
        loss.pair.structure(x, {"index": index})
        loss.pair.layout(x, {"index": index})
        torch.manual_seed(seed)
        value = loss(x, index=index)
        found = torch.autograd.grad(
            -value, [tables[name] for name in self.names], materialize_grads=True
        )
        return -value.detach(), torch.stack(found, -1)

    def exact(
        self,
        bound: Callable[[Tensor], Tensor],
        num_draws: int,
        kl_weight: float = 1.0,
        nodes: int = 40,
    ) -> tuple[Tensor, Tensor]:
        """E[f(ℓ_1 … ℓ_K)] and its gradient ``(P,)`` by Gauss-Hermite quadrature over all ε."""
        parameters = {
            name: torch.tensor(value, requires_grad=True, **DOUBLE)
            for name, value in self.values.items()
        }
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        grid = torch.tensor(list(product(points, repeat=self.levels)), **DOUBLE)  # (n^L, L)
        log_x, log_z, log_q = self.densities(parameters, grid)
        one = log_x + kl_weight * (log_z - log_q)  # (n^L,)
        mass = torch.tensor(
            list(product(weights / weights.sum(), repeat=self.levels)), **DOUBLE
        ).prod(-1)
        shape = [one.shape[0]] * num_draws
        every = torch.stack(
            [
                one.reshape([-1 if i == k else 1 for i in range(num_draws)]).expand(shape)
                for k in range(num_draws)
            ]
        )
        joint = mass
        for _ in range(num_draws - 1):
            joint = joint.unsqueeze(-1) * mass
        value = (joint.flatten() * bound(every.flatten(1))).sum()
        return value.detach(), torch.stack(
            torch.autograd.grad(value, [parameters[name] for name in self.names])
        )


def _normal(value: Tensor, loc: Any, scale: Any) -> Tensor:
    scale = torch.as_tensor(scale, **DOUBLE)
    return -0.5 * ((value - loc) / scale).square() - scale.log() - 0.5 * float(np.log(2 * np.pi))


def one_level() -> Case:
    """z ~ N(μ, 1), x | z ~ N(w z, 0.7²), q(z | x) = N(a x + b, e^{2s})."""

    def densities(p: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loc, scale = p["a"] * X + p["b"], p["s"].exp()
        z = loc + scale * noise[:, 0]
        return (
            _normal(torch.tensor(X, **DOUBLE), p["w"] * z, NOISE),
            _normal(z, p["mu"], 1.0),
            _normal(z, loc, scale),
        )

    def build(t: dict[str, nn.Parameter], law: dict[str, Any]) -> tuple[Any, Any]:
        def model(x: Tensor, index: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(t["mu"][index], 1.0))
                pyro.sample(
                    "x", dist.Normal((t["w"][index] * z).unsqueeze(-1), NOISE).to_event(1), obs=x
                )

        def guide(x: Tensor, index: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z", law["z"](t["a"][index] * x[:, 0] + t["b"][index], t["s"][index].exp())
                )

        return model, guide

    values = {"mu": 0.3, "w": 1.2, "a": 0.35, "b": -0.2, "s": -0.3}
    return Case(("mu", "w", "a", "b", "s"), values, densities, 1, build)


def two_levels() -> Case:
    """u ~ N(0, 1), z | u ~ N(v u, 0.8²), x | z ~ N(w z, 0.7²); q(z | x) = N(a x + b, e^{2s}), q(u |
    z) = N(c z + d x, e^{2r}).
    """

    def densities(p: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loc, scale = p["a"] * X + p["b"], p["s"].exp()
        z = loc + scale * noise[:, 0]
        loc_u, scale_u = p["c"] * z + p["d"] * X, p["r"].exp()
        u = loc_u + scale_u * noise[:, 1]
        log_z = _normal(u, 0.0, 1.0) + _normal(z, p["v"] * u, 0.8)
        return (
            _normal(torch.tensor(X, **DOUBLE), p["w"] * z, NOISE),
            log_z,
            _normal(z, loc, scale) + _normal(u, loc_u, scale_u),
        )

    def build(t: dict[str, nn.Parameter], law: dict[str, Any]) -> tuple[Any, Any]:
        def model(x: Tensor, index: Tensor) -> None:
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(torch.zeros(len(x), **DOUBLE), 1.0))
                z = pyro.sample("z", dist.Normal(t["v"][index] * u, 0.8))
                pyro.sample(
                    "x", dist.Normal((t["w"][index] * z).unsqueeze(-1), NOISE).to_event(1), obs=x
                )

        def guide(x: Tensor, index: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", law["z"](t["a"][index] * x[:, 0] + t["b"][index], t["s"][index].exp())
                )
                pyro.sample(
                    "u", law["u"](t["c"][index] * z + t["d"][index] * x[:, 0], t["r"][index].exp())
                )

        return model, guide

    values = {"v": 0.8, "w": 1.1, "a": 0.5, "b": -0.1, "s": -0.4, "c": 0.3, "d": 0.1, "r": -0.1}
    return Case(("v", "w", "a", "b", "s", "c", "d", "r"), values, densities, 2, build)


CASES: dict[str, Callable[[], Case]] = {"one level": one_level, "two levels": two_levels}
ENCODER: dict[str, tuple[str, ...]] = {
    "one level": ("a", "b", "s"),
    "two levels": ("a", "b", "s", "c", "d", "r"),
}
