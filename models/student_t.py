"""The heavy-tailed likelihood of real-valued pixels."""

import math
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.nn.location_scale import LocationScale
from pyro_vae.nn.log_gamma import log_gamma_ratio
from pyro_vae.nn.net import NetSpec


class StudentT(LocationScale):
    """x_d | z ~ t_ν(μ_d(z), σ): real pixels, a few of which may lie far off (Takahashi et al.
    2018).

    ``df`` is ν, a positive number or ``learned`` (one, shared by all pixels); ``scale``, ``mean``
    and ``min_scale`` are those of `Gaussian`, which is the limit ν → ∞. Pictures show μ: for ν ≤ 1
    the law has no mean.
    """

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
        fixed = isinstance(df, int | float) and not isinstance(df, bool)
        if not fixed and df != "learned":
            raise UserError(
                did_you_mean("df of StudentT", str(df), ["learned", "a positive number"])
            )
        if fixed and not 0 < float(df) < math.inf:
            raise UserError(
                f"StudentT(df={df}): ν must be positive and finite; its limit is Gaussian"
            )
        super().__init__(event_shape, latent_dim, scale, mean, min_scale, net, **net_args)
        if fixed:
            self.register_buffer("log_df", torch.tensor(float(df)).log())
        else:
            # tails that still have a variance, and are seen to be heavy
            self.log_df = nn.Parameter(torch.tensor(4.0).log())

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
