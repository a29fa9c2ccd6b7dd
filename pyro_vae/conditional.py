"""Conditional densities: context in, distribution out. Prior, likelihood and encoder are this one idea."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.errors import UserError

Observes = Literal["binary", "unit", "real", "levels"]


def check_latent_dim(latent_dim: int) -> None:
    """A whole number, 1 or more."""
    if isinstance(latent_dim, bool) or not isinstance(latent_dim, int) or latent_dim < 1:
        raise UserError(f"latent_dim={latent_dim!r}: expected a whole number of latent dimensions, 1 or more")


class ConditionalDistribution(nn.Module, ABC):
    """A family of distributions indexed by a context (zuko's lazy distribution).

    ``forward(context)`` maps ``(*batch, *context_shape)`` to a distribution with ``batch_shape == batch`` and the
    instance's ``event_shape``; without a context (a prior) the batch shape is ``()``.
    """

    event_shape: torch.Size

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """The distribution at ``context``."""

    def __call__(self, context: Tensor | None = None) -> TorchDistribution:
        distribution: TorchDistribution = super().__call__(context)
        return distribution


class Prior(ConditionalDistribution):
    """p(z): a density of the latent ``z`` with event shape ``(latent_dim,)``."""

    slot: ClassVar[str] = "prior"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_latent_dim(latent_dim)
        self.event_shape = torch.Size([latent_dim])


class Likelihood(ConditionalDistribution):
    """p(x | z): a decoder network and the law of an image given its output.

    ``kind`` tells whether it is a mass function or a density: log p(x) is comparable within a kind only. ``observes``
    tells what values a pixel may take, from which ``--binarize auto`` chooses: ``binary`` {0, 1}, ``unit`` [0, 1],
    ``real``, or ``levels`` (the integers stored in the file).
    """

    slot: ClassVar[str] = "likelihood"
    kind: ClassVar[Literal["mass", "density"]]
    observes: ClassVar[Observes]

    def __init__(
        self, latent_dim: int, event_shape: tuple[int, ...], per_pixel: int, net: str | type = "MLP", **net_args: Any
    ) -> None:
        """``per_pixel``: how many numbers the decoder gives for each pixel."""
        from pyro_vae.nn import make_decoder

        super().__init__()
        check_latent_dim(latent_dim)
        self.event_shape = torch.Size(event_shape)
        self.per_pixel = per_pixel
        self.net = make_decoder(net, latent_dim, event_shape, per_pixel, **net_args)

    def outputs(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """The decoder's ``per_pixel`` outputs at ``z``, each ``(*batch, *event_shape)``."""
        if context is None:
            raise ValueError(f"{type(self).__name__} is p(x | z): call it with z, (*batch, latent_dim)")
        return self.net(context).chunk(self.per_pixel, dim=-len(self.event_shape))
