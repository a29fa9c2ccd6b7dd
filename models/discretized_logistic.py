"""The likelihood of grey levels as rounded real values."""

import math
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.bisection import solve
from pyro_vae.nn.conditional import INNER, Likelihood, NetSpec, check_levels
from pyro_vae.nn.discretized_logistic import DiscretizedLogistic as Law
from pyro_vae.validation import check_whole

LOG_SCALES = (-7.0, 7.0)
"""Held between: a logistic of e⁻⁷ lies in one of 256 levels (the lower bound of Salimans et al.'s
code), one of e⁷ in the ends.
"""


class DiscretizedLogistic(Likelihood):
    """x_d | z ~ a logistic, or a mixture of ``components``, rounded to the levels 0 … L − 1
    (Salimans et al. 2017, equation 2).

    The decoder gives a location and a log scale for each component of each pixel, on a scale on
    which the levels lie in [−1, 1], and the mixture's logits. The command line fills ``levels``
    from the data. Channels are independent given z.
    """

    kind = "mass"
    observes = "levels"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        levels: int = 256,
        components: int = 1,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_whole("DiscretizedLogistic(components={!r})", components, "components")
        check_levels("DiscretizedLogistic", levels)
        super().__init__(
            event_shape, latent_dim, 2 if components == 1 else 3 * components, net, **net_args
        )
        self.levels, self.components = levels, components

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        loc, log_scale, *logits = self.stacked(context).split(self.components, dim=-1)
        law = Law(
            loc,
            log_scale.clamp(*LOG_SCALES).exp(),
            logits[0] if logits else torch.zeros_like(loc),
            self.levels,
        )
        return law.to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The location that gives this mean at a quarter of the levels' half range, which every
        component starts with.
        """
        log_scale = torch.full_like(mean, math.log(0.25))
        top = self.levels - 1

        def mean_at(loc: Tensor) -> Tensor:
            place = loc.unsqueeze(-1)
            return (
                Law(place, log_scale.exp().unsqueeze(-1), torch.zeros_like(place), self.levels).mean
                / top
            )

        loc = solve(mean_at, (mean / top).clamp(INNER, 1 - INNER), -10.0, 10.0)
        alike = [None] * (self.per_pixel - 2 * self.components)
        return *[loc] * self.components, *[log_scale] * self.components, *alike
