"""Categorical likelihood, for grey levels without an order."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import INNER, Likelihood, NetSpec, check_levels
from pyro_vae.nn.special import solve


class Categorical(Likelihood):
    """x_d | z ~ Categorical(softmax l_d(z)): a free probability for each grey level of each pixel.

    The decoder gives L outputs for each pixel; the levels are 0 … L − 1.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        levels: L, the number of grey levels, 2 or more; the command line takes it from the data.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        van den Oord, Kalchbrenner and Kavukcuoglu 2016, "Pixel Recurrent Neural Networks".
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
