"""Distributions held against what they are not made of: sums and integrals over the support, and
SciPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor
from torch import distributions as td
from torch.distributions import biject_to, constraints

FINE = 0.1  # the step of the trapezoid, in arcsinh
FAR = 8.0  # its end: 1500 spreads from the centre, for tails as heavy as 1/|x|³
MOST = 1000  # of a count


def pixel_support(law: Any) -> Any:
    """The support of one entry of the event."""
    support = law.support
    while hasattr(support, "base_constraint"):  # of to_event, of a mixture
        support = support.base_constraint
    return support


def base_of(law: Any) -> Any:
    """The distribution of the entries, under ``to_event``."""
    while isinstance(law, td.Independent):
        law = law.base_dist
    return law


def log_mass(law: Any) -> Tensor:
    """log Σ p(x) or log ∫ p(x) dx over the support of a law with batch shape () and event shape
    (2,).
    """
    nodes, log_volumes = zip(*axes(law), strict=True)
    x = torch.cartesian_prod(*nodes)
    log_volume = torch.cartesian_prod(*log_volumes).sum(-1)
    parts = torch.cat([law.log_prob(some) for some in x.split(2048)]) + log_volume
    return torch.logsumexp(torch.where(log_volume > -600, parts, -torch.inf), 0)


def axes(law: Any) -> list[tuple[Tensor, Tensor]]:
    """For each entry of the event, the values to sum over and the log of the volume that each
    stands for.
    """
    support = pixel_support(law)
    draws = law.sample(torch.Size([400])).double()
    if support.is_discrete:
        values = every_value(support, draws)
        return [(values, torch.zeros_like(values))] * draws.shape[-1]
    to_support = biject_to(support)
    u = to_support.inv(draws)
    low, center, high = torch.quantile(u, torch.tensor([0.25, 0.5, 0.75], dtype=u.dtype), dim=0)
    t = torch.arange(-FAR, FAR, FINE, dtype=torch.float64)
    found = []
    for c, s in zip(center, (high - low) / 1.35, strict=True):
        at = c + s * t.sinh()
        if not isinstance(support, type(constraints.real)):
            at = at.clamp(-36, 36)  # further out, float64 rounds a value onto the support's edge
        x = to_support(at)
        log_volume = (FINE * s).log() + t.cosh().log() + to_support.log_abs_det_jacobian(at, x)
        found.append(
            (
                x,
                torch.where(at.abs() < 36, log_volume, -torch.inf)
                if at.abs().max() <= 36
                else log_volume,
            )
        )
    return found


def grid(center: Tensor, spread: Tensor, nodes: int = 2001) -> tuple[Tensor, Tensor]:
    """A trapezoid in arcsinh about each image's draws, ``(nodes^d, B, d)``, and log volumes,
    ``(nodes^d, B)``.
    """
    t = torch.linspace(-4.2, 4.2, nodes, dtype=torch.float64)
    axes = torch.cartesian_prod(*[t] * center.shape[-1]).reshape(-1, 1, center.shape[-1])
    volume = (axes.cosh() * (t[1] - t[0]) * spread).log().sum(-1)
    return center + spread * axes.sinh(), volume


def every_value(support: Any, draws: Tensor) -> Tensor:
    """The values of one entry: all of them, or, where they have no end, those that are not out of
    reach.
    """
    if support is constraints.boolean:
        low, high = 0.0, 1.0
    elif isinstance(support, type(constraints.integer_interval(0, 1))):
        low, high = (
            float(torch.as_tensor(support.lower_bound).min()),
            float(torch.as_tensor(support.upper_bound).max()),
        )
    else:
        low = float(torch.as_tensor(support.lower_bound).min())
        high = min(float(draws.mean() + 60 * draws.std()) + 40, MOST)
    return torch.arange(low, int(high) + 1, dtype=torch.float64)


def assert_mean_ratio_is_one(pilot: Tensor, z: Tensor, log_q: Tensor) -> None:
    """E_q[h(z) / q(z)] = 1 over the draws ``z`` ``(K, *rows, d)`` of q, within 4.5 of its own
    standard errors.

    h is a normal about the pilot draws, narrower than q, so that the ratio's variance is finite.
    """
    narrower = 0.5 if z.shape[-1] <= 4 else 0.8
    log_h = td.Normal(pilot.mean(0), narrower * pilot.std(0)).log_prob(z).sum(-1)
    ratio = (log_h - log_q).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert (error < 0.15).all(), error
    assert ((ratio.mean(0) - 1).abs() < 4.5 * error).all(), (ratio.mean(0), error)


# ------------------------------------------------------------------------------------------
# SciPy


def scipy_log_prob(law: Any, x: Tensor) -> np.ndarray | None:
    """log p(x) by SciPy's own implementation, summed over the event; None where SciPy lacks the
    distribution.
    """
    base = base_of(law)
    log_prob = _entries(base, x.detach().numpy())
    if log_prob is None:
        return None
    num_summed = len(law.event_shape) - len(base.event_shape)
    return log_prob.sum(tuple(range(-num_summed, 0))) if num_summed else log_prob


def _entries(base: Any, x: np.ndarray) -> np.ndarray | None:
    if isinstance(base, td.MixtureSameFamily):
        stacked = torch.as_tensor(x).unsqueeze(-1 - len(base.event_shape))
        parts = scipy_log_prob(base.component_distribution, stacked)
        weights = special.log_softmax(_a(base.mixture_distribution.logits), -1)
        return None if parts is None else np.asarray(special.logsumexp(parts + weights, -1))
    for kind, log_prob in SCIPY.items():
        if isinstance(base, kind):
            return np.asarray(log_prob(base, x))
    return None


def _a(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().numpy())


def _multivariate_normal(law: Any, x: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(x.shape[:-1], tuple(law.batch_shape))
    mean, cov, x = (
        np.broadcast_to(_a(law.mean), (*shape, x.shape[-1])),
        np.broadcast_to(_a(law.covariance_matrix), (*shape, x.shape[-1], x.shape[-1])),
        np.broadcast_to(x, (*shape, x.shape[-1])),
    )
    each = [stats.multivariate_normal.logpdf(x[i], mean[i], cov[i]) for i in np.ndindex(*shape)]
    return np.array(each).reshape(shape)


def _categorical(law: Any, x: np.ndarray) -> np.ndarray:
    logits = special.log_softmax(_a(law.logits), -1)
    index = np.broadcast_to(x, np.broadcast_shapes(x.shape, logits.shape[:-1])).astype(int)
    logits = np.broadcast_to(logits, (*index.shape, logits.shape[-1]))
    return np.take_along_axis(logits, index[..., None], -1)[..., 0]


SCIPY: dict[type, Callable[[Any, np.ndarray], Any]] = {
    td.Bernoulli: lambda d, x: stats.bernoulli.logpmf(x, _a(d.probs)),
    td.Normal: lambda d, x: stats.norm.logpdf(x, _a(d.loc), _a(d.scale)),
    td.Laplace: lambda d, x: stats.laplace.logpdf(x, _a(d.loc), _a(d.scale)),
    td.LogNormal: lambda d, x: stats.lognorm.logpdf(x, _a(d.scale), scale=np.exp(_a(d.loc))),
    td.StudentT: lambda d, x: stats.t.logpdf(x, _a(d.df), _a(d.loc), _a(d.scale)),
    td.Beta: lambda d, x: stats.beta.logpdf(x, _a(d.concentration1), _a(d.concentration0)),
    td.Gamma: lambda d, x: stats.gamma.logpdf(x, _a(d.concentration), scale=1 / _a(d.rate)),
    td.Poisson: lambda d, x: stats.poisson.logpmf(x, _a(d.rate)),
    td.NegativeBinomial: lambda d, x: stats.nbinom.logpmf(x, _a(d.total_count), 1 - _a(d.probs)),
    td.Binomial: lambda d, x: stats.binom.logpmf(x, _a(d.total_count), _a(d.probs)),
    td.Categorical: _categorical,
    td.MultivariateNormal: _multivariate_normal,
    td.LowRankMultivariateNormal: _multivariate_normal,
}
"""By the distribution, so that a part which is made of one of these has its check. ``log p`` of
each entry.
"""
