"""The likelihood of counts that vary more than a Poisson's."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.nn.conditional import Likelihood, NetSpec, number_or_word, output_of, rate_of
from pyro_vae.nn.special import log_gamma_ratio


class NegativeBinomial(Likelihood):
    """x_d | z ~ NB(mean softplus(l_d(z)), r): counts of variance m + m²/r; Poisson in the limit r →
    ∞.

    ``total_count`` is r: a positive number, ``learned`` (one, shared by all pixels), or
    ``per_pixel`` (r_d(z), a second output of the decoder).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        total_count: r: a positive number, ``learned`` or ``per_pixel``.
        net: the decoder: a name, a call, a class, or a module that is ready (`make_decoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
    """

    kind = "mass"
    observes = "counts"
    log_total_count: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        total_count: float | str = "learned",
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        words = ["learned", "per_pixel"]
        fixed = number_or_word("total_count of NegativeBinomial", total_count, words, "r")
        super().__init__(
            event_shape, latent_dim, 2 if total_count == "per_pixel" else 1, net, **net_args
        )
        self.log_of("total_count", fixed, start=1.0)  # geometric: the widest start

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
