"""Poisson likelihood, and the base class of likelihoods of counts (offset, zero inflation)."""

from __future__ import annotations

from abc import abstractmethod
from math import exp
from typing import TYPE_CHECKING, Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.nn.conditional import Likelihood, NetSpec, output_of, rate_of
from pyro_vae.validation import check_choice

if TYPE_CHECKING:
    from pyro_vae.training.init import TrainingImages

GATE = -2.0
"""The logit of a zero that is none of the law's, at the start: 12%."""


class Counts(Likelihood):
    """x_d | z of rate e^o softplus(l_d(z)), o the row's ``offset``, a field of the data; 0 with a
    further probability g_d, where ``zero_inflation`` is on.

    Args:
        event_shape, latent_dim, net: as of `Likelihood`.
        per_pixel: the law's own numbers for each pixel, besides the rate.
        zero_inflation: ``learned`` (one g, shared by all pixels), ``per_pixel`` (g_d(z), a further
            output of the decoder), or None.
    """

    kind = "mass"
    observes = "counts"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        per_pixel: int,
        zero_inflation: str | None,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        words = f"zero_inflation of {type(self).__name__}"
        if zero_inflation is not None:
            check_choice(words, zero_inflation, ["learned", "per_pixel"])
        decoded = zero_inflation == "per_pixel"
        super().__init__(event_shape, latent_dim, 1 + per_pixel + decoded, net, **net_args)
        self.zero_inflation = zero_inflation
        if zero_inflation == "learned":
            self.gate = nn.Parameter(torch.tensor(GATE))

    @abstractmethod
    def law(self, rate: Tensor, own: list[Tensor]) -> dist.TorchDistribution:
        """The law of each pixel at its rate ``(*batch, *event_shape)``, and its own numbers."""

    def forward(
        self, context: Tensor | None = None, offset: Tensor | None = None
    ) -> dist.TorchDistribution:
        """p(x | z = context), of rows of log size ``offset``, ``(B,)``."""
        output, *own = self.outputs(context)
        rate, dims = rate_of(output), len(self.event_shape)
        if offset is not None:
            rate = rate * offset.to(rate).exp().reshape(*offset.shape, *[1] * dims)
        if self.zero_inflation is None:
            return self.law(rate, own).to_event(dims)
        gate = self.gate if self.zero_inflation == "learned" else own.pop()
        return dist.ZeroInflatedDistribution(self.law(rate, own), gate_logits=gate).to_event(dims)

    def start_from_data(self, data: TrainingImages) -> None:
        """`start_at_mean` of a row of size 1."""
        offset = data.field("offset")
        size = 1.0 if offset is None else float(offset.double().exp().mean())
        self.start_at_mean(data.mean / size)

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The inverse of softplus at the mean of what is no further zero; the law's own numbers are
        left as they are.
        """
        gates = [torch.full_like(mean, GATE)] if self.zero_inflation == "per_pixel" else []
        share = 1.0 if self.zero_inflation is None else 1.0 / (1.0 + exp(GATE))
        return output_of(mean / share), *[None] * (self.per_pixel - 1 - len(gates)), *gates


class Poisson(Counts):
    """x_d | z ~ Poisson(e^o softplus(l_d(z))): counts 0, 1, 2, … without a largest value.

    o is 0, or the field ``offset`` of the data: the log of the row's size (its exposure).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        zero_inflation: a further probability of 0: ``learned`` (one, shared by all pixels),
            ``per_pixel`` (a further output of the decoder), or None.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Lambert 1992, "Zero-Inflated Poisson Regression" (zero inflation).
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        zero_inflation: str | None = None,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, 0, zero_inflation, net, **net_args)

    def law(self, rate: Tensor, own: list[Tensor]) -> dist.TorchDistribution:
        """Poisson(rate)."""
        return dist.Poisson(rate)
