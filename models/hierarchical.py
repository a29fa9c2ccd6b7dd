"""Hierarchical generative model: several layers of latents."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import pyro
from pyro_vae.models.generative import GenerativeModel
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.nn import MLP
from pyro_vae.nn.conditional import (
    ConditionalDistribution,
    DiagonalNormal,
    NetSpec,
    check_latent_dim,
)
from pyro_vae.nn.hierarchy import level_args
from pyro_vae.nn.net import unpacked
from pyro_vae.protocols import hook


class Hierarchical(GenerativeModel):
    """z_L ~ p(z_L), z_l | z_{l+1} ~ N(μ_l, diag σ_l²), x ~ p(x | z_1): L layers of latents.

    The sites are ``z1`` … ``zL``; the top one is drawn first. The likelihood decodes z_1. An MLP is
    between two layers. ``hidden`` has widths for every level, or those of each level from the image
    upwards, as in ``((200, 200), (100, 100))``; the first are the likelihood's if that is built
    from its name.

    Args:
        prior: p(z_L).
        likelihood: p(x | z_1).
        latent_dims: the dimensions of z_1, …, z_L; by default those of the two parts. On the
            command line by default two layers, ``2 · latent_dim`` and ``latent_dim``.
        net: the network of a likelihood that is built from its name; its arguments are those of
            every level.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: dimensions that are not those of the prior and the likelihood.

    Reference:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", equation 1.
    """

    fitting_guides: ClassVar[tuple[str, ...]] = ("BottomUp", "TopDown")

    def __init__(
        self,
        prior: ConditionalDistribution,
        likelihood: ConditionalDistribution,
        latent_dims: tuple[int, ...] | None = None,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(prior, likelihood)
        top, bottom = prior.event_shape.numel(), hook(likelihood, "latent_dim")
        self.latent_dims = (
            _checked(latent_dims) if latent_dims is not None else (bottom or top, top)
        )
        if self.latent_dims[-1] != top or self.latent_dims[0] != (bottom or self.latent_dims[0]):
            raise UserError(
                f"Hierarchical(latent_dims={self.latent_dims}): expected a likelihood and a "
                f"prior of these dimensions, but the likelihood decodes {bottom} and the prior "
                f"has {top}: give the likelihood latent_dim={self.latent_dims[0]} and the prior "
                f"latent_dim={self.latent_dims[-1]}"
            )
        between = level_args(unpacked(net, net_args)[1], len(self.latent_dims))[1:]
        self.conditionals = nn.ModuleList(  # p(z_l | z_{l+1}), l = 1 … L − 1
            DiagonalNormal(MLP.decoder(above, (2 * below,), **args))
            for (below, above), args in zip(pairwise(self.latent_dims), between, strict=True)
        )

    @staticmethod
    def context_of(
        argument: str, values: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What `registry.build` fills the prior and the likelihood with: the dimensions at their
        ends of the hierarchy.
        """
        dims = values.get("latent_dims")
        if dims is None and "latent_dim" not in context:
            return context
        dims = (
            _checked(dims)
            if dims is not None
            else (2 * context["latent_dim"], context["latent_dim"])
        )
        if argument == "prior":
            return {**context, "latent_dim": dims[-1]}
        net_args = {
            name: v
            for name, v in values.items()
            if name not in ("prior", "likelihood", "latent_dims")
        }
        return {**context, "latent_dim": dims[0], **level_args(net_args, len(dims))[0]}

    def decoded(self, **_: Any) -> Tensor:
        """z_L, …, z_1, sampled downwards; the last is decoded, ``(B, latent_dims[0])``."""
        num_levels = len(self.latent_dims)
        z: Tensor = pyro.sample(f"z{num_levels}", self.prior())
        for level in range(num_levels - 1, 0, -1):
            z = pyro.sample(f"z{level}", self.conditionals[level - 1](z))
        return z


def _checked(latent_dims: Any) -> tuple[int, ...]:
    if not isinstance(latent_dims, tuple | list) or not latent_dims:
        raise UserError(
            f"Hierarchical(latent_dims={latent_dims!r}): expected the dimensions of each level, "
            "from the image upwards, such as latent_dims=(100, 50)"
        )
    for latent_dim in latent_dims:
        check_latent_dim(latent_dim)
    return tuple(latent_dims)
