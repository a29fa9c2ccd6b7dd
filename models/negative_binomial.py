"""Negative binomial likelihood, for overdispersed counts."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.models.poisson import Counts
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.nn.conditional import NetSpec, number_or_word
from pyro_vae.nn.special import log_gamma_ratio


class NegativeBinomial(Counts):
    """x_d | z ~ NB(mean e^o softplus(l_d(z)), r): counts of variance m + m²/r; r → ∞ is the
    Poisson.

    o is 0, or the field ``offset`` of the data: the log of the row's size (its exposure).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        total_count: r: a positive number, ``learned`` (one, shared by all pixels), or ``per_pixel``
            (r_d(z), a second output of the decoder).
        zero_inflation: a further probability of 0: ``learned`` (one, shared by all pixels),
            ``per_pixel`` (a further output of the decoder), or None.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Lopez et al. 2018, "Deep Generative Modeling for Single-Cell Transcriptomics".
    """

    log_total_count: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        total_count: float | str = "learned",
        zero_inflation: str | None = None,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        words = ["learned", "per_pixel"]
        fixed = number_or_word("total_count of NegativeBinomial", total_count, words, "r")
        decoded = total_count == "per_pixel"
        super().__init__(event_shape, latent_dim, int(decoded), zero_inflation, net, **net_args)
        if not decoded:
            self.log_of("total_count", fixed, start=1.0)  # geometric: the widest start

    def law(self, rate: Tensor, own: list[Tensor]) -> dist.TorchDistribution:
        """NB of this mean."""
        log_total_count = own[0] if own else self.log_total_count
        return _NegativeBinomial(log_total_count.exp(), logits=rate.log() - log_total_count)


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
