"""Special functions: the inverse of an increasing function, and ratios of gamma functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def solve(
    function: Callable[[Tensor], Tensor], target: Tensor, low: float, high: float, steps: int = 60
) -> Tensor:
    """x in [low, high] with ``function(x) = target``, elementwise, by bisection to (high − low) /
    2^steps.
    """
    below, above = torch.full_like(target, low), torch.full_like(target, high)
    for _ in range(steps):
        middle = (below + above) / 2
        under = function(middle) < target
        below, above = torch.where(under, middle, below), torch.where(under, above, middle)
    return (below + above) / 2


LARGE = 10.0
"""From here the series is exact to 1e-12; below, lgamma is small and its difference is good."""


def log_gamma_ratio(a: Tensor, x: Tensor) -> Tensor:
    """log Γ(a + x) − log Γ(a) for a > 0, x ≥ 0, to rounding at any a.

    log Γ grows as a log a: in float32, at a = 10⁶, a difference of two has lost the whole nat.
    Above `LARGE` the two Stirling series are subtracted term by term (Abramowitz & Stegun, 6.1.41).
    """
    a, x = torch.broadcast_tensors(a, x)
    large = a > LARGE
    low, high = (
        torch.where(large, 1.0, a),
        torch.where(large, a, LARGE),
    )  # neither branch may overflow in a gradient
    series = (
        x * (high + x).log()
        + (high - 0.5) * torch.log1p(x / high)
        - x
        + _rest(high + x)
        - _rest(high)
    )
    return torch.where(large, series, torch.lgamma(low + x) - torch.lgamma(low))


def _rest(a: Tensor) -> Tensor:
    """log Γ(a) − [(a − ½) log a − a + ½ log 2π]."""
    r = 1 / a.square()
    return (
        1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r * (1 / 1188 - r * 691 / 360360))))
    ) / a
