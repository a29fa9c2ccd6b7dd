"""The likelihood of grey levels without an order."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import INNER, Likelihood, NetSpec, check_levels
from pyro_vae.nn.special import solve


class Categorical(Likelihood):
    """x_d | z ~ Categorical(softmax l_d(z)): a free probability for each grey level of each pixel
    (van den Oord et al. 2016).

    The levels are 0 … ``levels`` − 1, and the decoder gives so many outputs a pixel; the command
    line fills ``levels`` from the data.

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
        super().__init__(
            event_shape, latent_dim, check_levels("Categorical", levels), net, **net_args
        )
        self.levels = levels

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        return _Categorical(logits=self.stacked(context)).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """Logits that are linear in the level: of all masses with this mean, the one of the largest
        entropy.
        """
        top = self.levels - 1
        at = torch.arange(self.levels, dtype=mean.dtype, device=mean.device) / top
        share = (mean / top).clamp(INNER, 1 - INNER)
        slope = solve(
            lambda t: ((t.unsqueeze(-1) * at).softmax(-1) * at).sum(-1),
            share,
            -20.0 * top,
            20.0 * top,
        )
        return (slope.unsqueeze(-1) * at).unbind(-1)


class _Categorical(dist.Categorical):
    """Pyro's, on levels: they are floats as the images are, and have a mean."""

    @property
    def mean(self) -> Tensor:
        return (
            self.probs
            * torch.arange(self._num_events, dtype=self.logits.dtype, device=self.logits.device)
        ).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape).to(self.logits.dtype)
