"""The likelihood of real-valued pixels."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.conditional import Likelihood
from pyro_vae.errors import UserError, did_you_mean

MEANS = {"identity": torch.nn.Identity, "sigmoid": torch.nn.Sigmoid}


class Gaussian(Likelihood):
    """x_d | z ~ N(μ_d(z), σ²): pixels as real numbers (AEVB, appendix C.2).

    ``scale`` is a number (1.0 is the textbook N(x; x̂, I)), ``learned`` (one σ, shared by all pixels) or ``per_pixel``
    (σ_d(z), a second output of the decoder). ``mean="sigmoid"`` holds μ in (0, 1), as AEVB does for the Frey faces.
    ``min_scale`` is added to a per-pixel σ, without which a pixel that never varies has an unbounded density.
    """

    kind = "density"
    observes = "real"

    def __init__(
        self,
        latent_dim: int,
        event_shape: tuple[int, ...],
        scale: float | str = "learned",
        mean: str = "identity",
        min_scale: float = 1e-3,
        net: str | type = "MLP",
        **net_args: Any,
    ) -> None:
        fixed = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not fixed and scale not in ("learned", "per_pixel"):
            raise UserError(
                did_you_mean("scale of Gaussian", str(scale), ["learned", "per_pixel", "a positive number"])
            )
        if fixed and not 0 < float(scale) < float("inf"):
            raise UserError(f"Gaussian(scale={scale}): the standard deviation must be positive and finite")
        if not 0 <= min_scale < float("inf"):
            raise UserError(f"Gaussian(min_scale={min_scale}): expected a number, 0 or more")
        if mean not in MEANS:
            raise UserError(did_you_mean("mean of Gaussian", mean, MEANS))
        super().__init__(latent_dim, event_shape, 2 if scale == "per_pixel" else 1, net, **net_args)
        self.mean = MEANS[mean]()
        self.min_scale = min_scale
        if fixed:
            self.register_buffer("log_scale", torch.tensor(float(scale)).log())
        elif scale == "learned":
            # the spread of images in [0, 1] about their mean: a start that is neither blind nor certain
            self.log_scale = nn.Parameter(torch.tensor(0.25).log())

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        location, *raw_scale = self.outputs(context)
        scale = F.softplus(raw_scale[0]) + self.min_scale if raw_scale else self.log_scale.exp()
        return dist.Normal(self.mean(location), scale).to_event(len(self.event_shape))
