"""Bottom-up guide of a hierarchy: each layer is inferred from the one below."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.nn.conditional import DiagonalNormal
from pyro_vae.nn.hierarchy import encoders, levels_of
from pyro_vae.nn.net import NetSpec


class BottomUp(PyroModule):
    """q(z | x) = q(z_1 | x) Π_l q(z_{l+1} | z_l), diagonal Gaussians, for a hierarchy: upwards from
    the image.

    The dimensions are those of the model. ``hidden`` has widths for every level, or those of each
    level from the image upwards, as in ``((200, 200), (100, 100))``. Only the KL of z_L is closed:
    the model draws the others given latents that this guide has not drawn yet.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        model: a model with ``latent_dims``, such as ``Hierarchical``.
        net: the network from the image; those above it are MLPs.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: the model has no layers of latents; widths for another number of levels.

    Reference:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", equation 2.
    """

    slot: ClassVar[str] = "guide"

    def __init__(
        self, event_shape: tuple[int, ...], model: Any, net: NetSpec = "MLP", **net_args: Any
    ) -> None:
        super().__init__()
        nets = encoders(event_shape, levels_of("BottomUp", model), 1, net, net_args)
        self.conditionals = nn.ModuleList(
            map(DiagonalNormal, nets)
        )  # q(z_1 | x), then q(z_{l+1} | z_l)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Sample z_1, …, z_L upwards; the last is returned, ``(B, latent_dims[-1])``."""
        first, *others = self.conditionals
        q = first(x)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample("z1", q)
            for level, conditional in enumerate(others, start=2):
                z = pyro.sample(f"z{level}", conditional(z))
        return z
