"""The likelihood of counts that vary more than a Poisson's."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.nn.conditional import Likelihood, NetSpec, output_of, rate_of
from pyro_vae.nn.log_gamma import log_gamma_ratio


class NegativeBinomial(Likelihood):
    """x_d | z ~ NB(mean softplus(l_d(z)), r): counts of variance m + m²/r; Poisson in the limit r →
    ∞.

    ``total_count`` is r: a positive number, ``learned`` (one, shared by all pixels), or
    ``per_pixel`` (r_d(z), a second output of the decoder).
    """

    kind = "mass"
    observes = "counts"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        total_count: float | str = "learned",
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        fixed = isinstance(total_count, int | float) and not isinstance(total_count, bool)
        if not fixed and total_count not in ("learned", "per_pixel"):
            choices = ["learned", "per_pixel", "a positive number"]
            raise UserError(
                did_you_mean("total_count of NegativeBinomial", str(total_count), choices)
            )
        if fixed and not 0 < float(total_count) < float("inf"):
            raise UserError(
                f"NegativeBinomial(total_count={total_count}): r must be positive and finite"
            )
        super().__init__(
            event_shape, latent_dim, 2 if total_count == "per_pixel" else 1, net, **net_args
        )
        if fixed:
            self.register_buffer("log_total_count", torch.tensor(float(total_count)).log())
        elif total_count == "learned":
            self.log_total_count = nn.Parameter(torch.tensor(0.0))  # geometric: the widest start

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        output, *own = self.outputs(context)
        log_total_count = own[0] if own else self.log_total_count
        law = _NegativeBinomial(
            log_total_count.exp(), logits=rate_of(output).log() - log_total_count
        )
        return law.to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The inverse of softplus at the mean; a per-pixel r is left as it is."""
        return output_of(mean), *[None] * (self.per_pixel - 1)


class _NegativeBinomial(dist.NegativeBinomial):
    """Pyro's, with a mass that keeps its digits for large r, to which counts that vary little drive
    it.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        choices = log_gamma_ratio(self.total_count, value) - torch.lgamma(value + 1)
        return (
            choices
            + self.total_count * F.logsigmoid(-self.logits)
            + value * F.logsigmoid(self.logits)
        )
