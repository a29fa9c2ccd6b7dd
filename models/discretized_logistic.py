"""Discretized logistic likelihood, for ordered grey levels; neither torch nor Pyro has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_vae.nn.conditional import INNER, Likelihood, NetSpec, check_levels
from pyro_vae.nn.special import solve
from pyro_vae.validation import check_whole

LOG_SCALES = (-7.0, 7.0)
"""Clamped between: a logistic of e⁻⁷ falls into one of 256 levels (the lower bound of Salimans et
al.'s code), one of e⁷ in the ends.
"""


class DiscretizedLogistic(Likelihood):
    """x_d | z ~ a logistic, or a mixture of ``components``, rounded to the levels 0 … L − 1.

    The decoder gives a location and a log scale for each component of each pixel, in units in which
    the levels are in [−1, 1], and the mixture's logits. Channels are independent given z.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        levels: L, the number of grey levels, 2 or more; the command line takes it from the data.
        components: logistics in the mixture of each pixel.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Salimans et al. 2017, "PixelCNN++", equation 2.
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
        law = _DiscretizedLogistic(
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
                _DiscretizedLogistic(
                    place, log_scale.exp().unsqueeze(-1), torch.zeros_like(place), self.levels
                ).mean
                / top
            )

        loc = solve(mean_at, (mean / top).clamp(INNER, 1 - INNER), -10.0, 10.0)
        alike = [None] * (self.per_pixel - 2 * self.components)
        return *[loc] * self.components, *[log_scale] * self.components, *alike


class _DiscretizedLogistic(TorchDistribution):
    """P(x) = Σ_c π_c [σ((v + h − μ_c)/s_c) − σ((v − h − μ_c)/s_c)] on levels x = 0 … L − 1
    (Salimans et al. 2017, equation 2).

    v = 2x/(L − 1) − 1 is the level's place in [−1, 1] and h = 1/(L − 1) half the distance to the
    next. The bins of the first and the last level reach to −∞ and +∞, so that the mass is exactly
    1.

    Args:
        loc, scale, logits: μ, s and log π (up to a constant), ``(*batch, components)``.
        levels: L.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "logits": constraints.real_vector,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        logits: Tensor,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.logits = torch.broadcast_tensors(loc, scale, logits)
        self.levels = levels
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _DiscretizedLogistic:
        """The same law on a larger batch."""
        new: _DiscretizedLogistic = self._get_checked_instance(_DiscretizedLogistic, _instance)
        shape = (*batch_shape, self.loc.shape[-1])
        new.loc, new.scale, new.logits = (
            each.expand(shape) for each in (self.loc, self.scale, self.logits)
        )
        new.levels = self.levels
        super(_DiscretizedLogistic, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The integers 0 … L − 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), ``batch_shape``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x = value.unsqueeze(-1)
        half = 1 / (self.levels - 1)
        place = (2 * half * x - 1 - self.loc) / self.scale
        width = half / self.scale
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)): a sum of logs in which nothing cancels, and
        # whose factors σ(a) and σ(−b) alone are left in the first and in the last bin
        first, last = x < 0.5, x > self.levels - 1.5
        log_mass = (
            torch.where(last, 0.0, F.logsigmoid(place + width))
            + torch.where(first, 0.0, F.logsigmoid(width - place))
            + torch.where(first | last, 0.0, (-torch.expm1(-2 * width)).log())
        )
        return (log_mass + self.logits.log_softmax(-1)).logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        """Σ_k P(x ≥ k), ``batch_shape``."""
        half, shares = 1 / (self.levels - 1), self.logits.softmax(-1)
        total = torch.zeros_like(self.loc)
        for level in range(1, self.levels):  # one at a time: memory does not grow with their number
            total = total + torch.sigmoid((self.loc - (2 * half * level - 1 - half)) / self.scale)
        return (shares * total).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Levels as floats, ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            uniform = torch.rand(
                (*shape, self.loc.shape[-1]), dtype=self.loc.dtype, device=self.loc.device
            )
            chosen = (self.logits - (-uniform.log()).log()).argmax(
                -1, keepdim=True
            )  # Gumbel's trick
            loc, scale = (
                each.expand(uniform.shape).gather(-1, chosen).squeeze(-1)
                for each in (self.loc, self.scale)
            )
            place = loc + scale * torch.rand_like(loc).logit()
            return ((place + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1)


LogisticLevels = _DiscretizedLogistic
