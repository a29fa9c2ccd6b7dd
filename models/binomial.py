"""Binomial likelihood, for grey levels as counts."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_vae.nn.conditional import Likelihood, NetSpec, check_levels, inner_logit


class Binomial(Likelihood):
    """x_d | z ~ Binomial(L − 1, σ(l_d(z))): grey levels 0 … L − 1 as counts.

    The embedded digits are such counts: a pixel is the number of inked dots among 4 × 4.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        levels: L, the number of grey levels, 2 or more; the command line takes it from the data.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (how the digits were
        counted).
    """

    kind = "mass"
    observes = "levels"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        levels: int = 256,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, 1, net, **net_args)
        self.levels = check_levels("Binomial", levels)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        (logits,) = self.outputs(context)
        return _Binomial(self.levels - 1, logits).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The logit of the mean's share of the largest level."""
        return (inner_logit(mean / (self.levels - 1)),)


class _Binomial(dist.Binomial):
    """Pyro's with one number of trials: a support that any image can be checked against, and log
    C(n, x) of x alone.
    """

    trials: int

    def __init__(self, trials: int, logits: Tensor, validate_args: bool | None = None) -> None:
        self.trials = trials
        super().__init__(trials, logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(_Binomial, _instance)
        new.trials = self.trials
        return super().expand(batch_shape, _instance=new)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.trials)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        rest = self.trials - value
        every = torch.lgamma(
            torch.as_tensor(self.trials + 1.0, dtype=value.dtype, device=value.device)
        )
        choices = every - torch.lgamma(value + 1) - torch.lgamma(rest + 1)
        return choices - value * F.softplus(-self.logits) - rest * F.softplus(self.logits)
