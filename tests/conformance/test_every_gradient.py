"""Gradients: against finite differences under fixed noise, and their mean against quadrature over
z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.evaluation.unconstrained import Unconstrained
from pyro_vae.objectives import Loss
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from tests.support.conforming import (
    SWAPPED,
    choices_for,
    images,
    loss_of,
    programs,
    rows,
    shaken,
    swaps,
    verdict,
)
from tests.support.laws import grid

DOUBLE = torch.float64


def direction(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """A random direction in the space of what is trained."""
    random = torch.Generator().manual_seed(4)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [(p, torch.randn(p.shape, generator=random, dtype=p.dtype)) for p in trained]


def slope(
    function: Callable[[], Tensor], along: list[tuple[nn.Parameter, Tensor]], step: float
) -> Any:
    """The central difference of ``function`` along the direction."""
    values = []
    for sign in (1.0, -2.0, 1.0):  # there, back past the start, and home
        with torch.no_grad():
            for parameter, way in along:
                parameter += sign * step * way
        values.append(function())
    return (values[0] - values[1]) / (2 * step)


def gradient_along(loss: Tensor, along: list[tuple[nn.Parameter, Tensor]]) -> tuple[float, float]:
    """The gradient's component along the direction, and the size that it is to be compared with."""
    found = torch.autograd.grad(loss, [parameter for parameter, _ in along], materialize_grads=True)
    parts = [(gradient * way).sum().item() for gradient, (_, way) in zip(found, along, strict=True)]
    return sum(parts), 1.0 + sum(map(abs, parts))


def defects(loss: Loss, along: list[tuple[nn.Parameter, Tensor]], x: Tensor, times: int) -> Tensor:
    """Gradient less finite difference, both along one direction and under the same noise, over a
    size: ``(times,)``.
    """
    found = []
    for seed in range(times):

        def value(seed: int = seed) -> Tensor:
            torch.manual_seed(seed)
            total: Tensor = loss(x, **rows(x))
            return total

        ours, size = gradient_along(value(), along)
        found.append((ours - slope(value, along, 1e-7).item()) / size)
    return torch.tensor(found, dtype=DOUBLE)


@pytest.mark.parametrize("swap", swaps(*SWAPPED))
def test_gradient_is_the_finite_difference(swap: str) -> None:
    """Under fixed noise where the draws are pathwise; an objective's may differ in each noise, if
    not on average.
    """
    model, guide = (shaken(module) for module in programs(swap, dtype=DOUBLE))
    x = images(model)
    structure = Pair.of(model, guide).structure(x, rows(x))
    if structure.not_reparameterized:
        pytest.skip("score-function gradients: held against quadrature instead")
    loss, along = loss_of(swap, model, guide), direction(nn.ModuleList([model, guide]))
    if getattr(guide, "first_order", False):
        along = direction(model) + direction(fixed_parameters(guide, x))
    found = defects(loss, along, x, 2)
    if (
        swap.startswith("objective=") and found.abs().max() > 1e-5
    ):  # a surrogate: unbiased, not the value's own slope
        found = defects(loss, along, x, 60)
        error = found.std() / len(found) ** 0.5
        assert found.mean().abs() < 4.5 * error and error < 0.1
    else:
        assert found.abs().max() < 1e-5


def fixed_parameters(guide: Any, x: Tensor) -> nn.ParameterList:
    """η as a parameter of its own, in place of ``local(x)``, whose own gradient is an approximation
    by design.
    """
    eta = nn.Parameter(guide.local(x, **rows(x)).detach())
    guide.local = lambda x, **fields: eta
    return nn.ParameterList([eta])


@pytest.mark.parametrize("swap", swaps("guide"))
def test_mean_gradient_is_quadratures(swap: str) -> None:
    """The mean loss and gradient over many draws are −ELBO and its slope, integrated over a z of
    one dimension.
    """
    structure = verdict(choices_for(swap)["model"], choices_for(swap)["guide"])
    assert isinstance(structure, Structure)
    if structure.point_masses:
        pytest.skip("a point mass has no density to integrate")
    model, guide = (shaken(module) for module in programs(swap, dtype=DOUBLE, latent_dim=1))
    pair, x = Pair.of(model, guide), images(model)[:2]
    if getattr(guide, "first_order", False):
        pytest.skip("a first-order guide: its network's gradient is an approximation by design")
    fields, along = rows(x), direction(nn.ModuleList([model, guide]))
    with pair.active(training=False):
        try:
            space = Unconstrained(pair, x, fields, 200)
        except UserError as error:
            pytest.skip(str(error))
        if space.num_dims > 1:
            pytest.skip(f"{space.num_dims} latent dimensions at the least: too many for a grid")
        torch.manual_seed(0)
        draws = space.draw(x, fields)
        nodes, log_volume = grid(draws.mean(0), draws.std(0))
        on_grid = Unconstrained(pair, x, fields, len(nodes))

        def integral() -> Tensor:
            log_q, log_p = on_grid.terms(nodes, x, fields)
            mass = (log_q + log_volume).exp()
            torch.testing.assert_close(
                mass.sum(0), torch.ones(len(x), dtype=DOUBLE), rtol=1e-5, atol=1e-5
            )
            return (mass * (log_q - log_p)).sum()

        with torch.no_grad():
            expected = torch.stack([integral(), slope(integral, along, 1e-4)])
        found = []
        loss, many = loss_of(swap, model, guide), 100
        repeated, again = (
            x.repeat(many, *(1 for _ in x.shape[1:])),
            {n: v.repeat(many) for n, v in fields.items()},
        )
        for seed in range(20):
            torch.manual_seed(seed)
            value = loss(repeated, **again) / many
            found.append([value.item(), gradient_along(value, along)[0]])
    each = torch.tensor(found, dtype=DOUBLE)
    error = each.std(0) / len(each) ** 0.5
    assert (
        (each.mean(0) - expected).abs() < 5 * error + 1e-3 * expected.abs().clamp(min=1.0)
    ).all()
