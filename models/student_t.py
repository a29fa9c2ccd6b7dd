"""Student-t likelihood, for real pixels with outliers."""

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
    """x_d | z ~ t_ν(μ_d(z), σ): real-valued pixels with heavy tails, for data with outliers.

    The limit ν → ∞ is the `Gaussian`. Pictures show μ; for ν ≤ 1 the distribution has no mean.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        df: ν, degrees of freedom: a positive number, or ``learned`` (one, shared by all pixels).
        scale: σ, in units of a pixel: a positive number, ``learned``, ``per_pixel`` or
            ``per_image``, as of `Gaussian`.
        mean: ``identity``; ``sigmoid``, which keeps μ in (0, 1); or ``tanh``, in (−1, 1).
        min_scale: added to a σ that depends on z, 0 or more.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a number out of its range, an unknown word or network.

    Reference:
        Takahashi et al. 2018, "Student-t Variational Autoencoder for Robust Density Estimation".
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
