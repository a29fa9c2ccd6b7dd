"""The likelihood of grey levels that count."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_vae.nn.conditional import Likelihood, NetSpec, check_levels, inner_logit


class Binomial(Likelihood):
    """x_d | z ~ Binomial(L − 1, σ(l_d(z))): grey levels 0 … L − 1 as counts.

    The embedded digits are such counts: of the 16 black and white dots that each pixel stands for.
    ``levels`` is L; the command line fills it from the data.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        levels: L, the number of grey levels, 2 or more.
        net: the decoder: a name, a call, a class, or a module that is ready (`make_decoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
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
