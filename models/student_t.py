"""The heavy-tailed likelihood of real-valued pixels."""

import math
from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.models.gaussian import LocationScale
from torch import Tensor

from pyro_vae.nn.conditional import number_or_word
from pyro_vae.nn.net import NetSpec
from pyro_vae.nn.special import log_gamma_ratio


class StudentT(LocationScale):
    """x_d | z ~ t_ν(μ_d(z), σ): real pixels, a few of which may lie far off (Takahashi et al.
    2018).

    ``df`` is ν, a positive number or ``learned`` (one, shared by all pixels); ``scale``, ``mean``
    and ``min_scale`` are those of `Gaussian`, which is the limit ν → ∞. Pictures show μ: for ν ≤ 1
    the law has no mean.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        df: ν: a positive number, or ``learned``.
        scale: σ: a positive number, ``learned`` or ``per_pixel``.
        mean: ``identity``, or ``sigmoid``, which keeps μ in (0, 1).
        min_scale: what is added to a per-pixel σ, 0 or more.
        net: the decoder: a name, a call, a class, or a module that is ready (`make_decoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
    """

    log_df: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        df: float | str = "learned",
        scale: float | str = "learned",
        mean: str = "identity",
        min_scale: float = 1e-3,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        fixed = number_or_word("df of StudentT", df, ["learned"], "ν")
        super().__init__(event_shape, latent_dim, scale, mean, min_scale, net, **net_args)
        # tails that still have a variance, and are seen to be heavy
        self.log_of("df", fixed, start=4.0)

    def law(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """t_ν(μ, σ)."""
        return _StudentT(self.log_df.exp(), location, scale)


class _StudentT(dist.StudentT):
    """Pyro's, with a density that keeps its digits for large ν, and its location in the place of a
    mean.
    """

    @property
    def mean(self) -> Tensor:
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 * self.df
        tail = (half + 0.5) * torch.log1p(((value - self.loc) / self.scale).square() / self.df)
        return (
            log_gamma_ratio(half, torch.full_like(half, 0.5))
            - 0.5 * (math.pi * self.df).log()
            - self.scale.log()
            - tail
        )
