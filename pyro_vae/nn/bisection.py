"""The argument at which an increasing function has a given value."""

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
