"""Top-down guide of a hierarchy: the ladder VAE."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.nn.hierarchy import encoders, levels_of
from pyro_vae.nn.net import NetSpec


class TopDown(PyroModule):
    """q(z | x) = q(z_L | x) Π_l q(z_l | z_{l+1}, x), each ∝ N(h_l(x)) p(z_l | z_{l+1}): the ladder
    VAE's guide, downwards.

    A deterministic network goes up: h_l = (μ̂_l, log σ̂_l) from h_{l−1}, with h_0 = x. Going down,
    each h_l is combined with the model's p(z_l | z_{l+1}), weighted by precision: the posterior of
    z_l, if p(x | z_l) were a diagonal Gaussian in z_l. Every KL is closed, as the guide draws in
    the model's order. The model's conditionals are used by the guide; their parameters are the
    model's.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        model: a model with ``latent_dims``, such as ``Hierarchical``.
        net: the network from the image; those above it are MLPs.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: the model has no layers of latents; widths for another number of levels.

    Reference:
        Sønderby et al. 2016, "Ladder Variational Autoencoders".
    """

    slot: ClassVar[str] = "guide"

    def __init__(
        self, event_shape: tuple[int, ...], model: Any, net: NetSpec = "MLP", **net_args: Any
    ) -> None:
        super().__init__()
        self.climb = nn.ModuleList(
            encoders(event_shape, levels_of("TopDown", model), 2, net, net_args)
        )
        self._model = (
            model,
        )  # a tuple hides it from the guide's submodules: freezing q does not freeze p

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Sample z_L, …, z_1 downwards; the last is returned, ``(B, latent_dims[0])``."""
        h, seen = x, []
        for net in self.climb:
            h = net(h)
            seen.append(h)
        conditionals = self._model[0].conditionals
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = seen[-1].chunk(2, dim=-1)
            z: Tensor = pyro.sample(f"z{len(seen)}", dist.Normal(loc, log_scale.exp()).to_event(1))
            for level in range(len(seen) - 1, 0, -1):
                loc, log_scale = seen[level - 1].chunk(2, dim=-1)
                z = pyro.sample(f"z{level}", _product(loc, log_scale, conditionals[level - 1](z)))
        return z


def _product(
    loc: Tensor, log_scale: Tensor, prior: dist.TorchDistribution
) -> dist.TorchDistribution:
    """The normalised product of N(loc, scale²) and the prior's diagonal Gaussian."""
    ours, theirs = (-2 * log_scale).exp(), prior.variance.reciprocal()
    variance = (ours + theirs).reciprocal()
    return dist.Normal(variance * (ours * loc + theirs * prior.mean), variance.sqrt()).to_event(1)
