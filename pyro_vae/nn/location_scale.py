"""Likelihoods of real-valued pixels with a location and a scale."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.nn.conditional import Likelihood, NetSpec, inner_logit

MEANS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "sigmoid": nn.Sigmoid}


class LocationScale(Likelihood):
    """x_d | z = μ_d(z) + σ ε_d, with ε_d of a standard law (`law`).

    ``scale`` is a number, ``learned`` (one σ, shared by all pixels) or ``per_pixel`` (σ_d(z), a
    second output of the decoder). ``mean="sigmoid"`` holds μ in (0, 1). ``min_scale`` is added to a
    per-pixel σ.
    """

    kind = "density"
    observes = "real"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        scale: float | str = "learned",
        mean: str = "identity",
        min_scale: float = 1e-3,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        name = type(self).__name__
        fixed = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not fixed and scale not in ("learned", "per_pixel"):
            raise UserError(
                did_you_mean(
                    f"scale of {name}", str(scale), ["learned", "per_pixel", "a positive number"]
                )
            )
        if fixed and not 0 < float(scale) < float("inf"):
            raise UserError(f"{name}(scale={scale}): σ must be positive and finite")
        if not 0 <= min_scale < float("inf"):
            raise UserError(f"{name}(min_scale={min_scale}): expected a number, 0 or more")
        if mean not in MEANS:
            raise UserError(did_you_mean(f"mean of {name}", mean, MEANS))
        super().__init__(event_shape, latent_dim, 2 if scale == "per_pixel" else 1, net, **net_args)
        self.mean = MEANS[mean]()
        self.min_scale = min_scale
        if fixed:
            self.register_buffer("log_scale", torch.tensor(float(scale)).log())
        elif scale == "learned":
            # the spread of images in [0, 1] about their mean: a start that is neither blind nor
            # certain
            self.log_scale = nn.Parameter(torch.tensor(0.25).log())

    @abstractmethod
    def law(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """The law of each pixel, its location ``(*batch, *event_shape)``."""

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        location, *raw_scale = self.outputs(context)
        scale = F.softplus(raw_scale[0]) + self.min_scale if raw_scale else self.log_scale.exp()
        return self.law(self.mean(location), scale).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The location; a per-pixel scale is left as it is."""
        location = inner_logit(mean) if isinstance(self.mean, nn.Sigmoid) else mean
        return location, *[None] * (self.per_pixel - 1)
