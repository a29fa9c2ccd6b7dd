"""Gaussian likelihood, and the base class of location-scale likelihoods."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.nn.conditional import Likelihood, NetSpec, inner_logit, number_or_word
from pyro_vae.validation import check_choice, check_number

MEANS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
SCALES = ["learned", "per_image", "per_pixel"]


class LocationScale(Likelihood):
    """x_d | z = μ_d(z) + σ ε_d, with ε_d of a standard distribution (`law`): what Gaussian and
    StudentT share.

    The arguments are those of `Gaussian`.
    """

    kind = "density"
    observes = "real"
    log_scale: Tensor

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
        fixed = number_or_word(f"scale of {name}", scale, SCALES, "σ")
        check_number(f"{name}(min_scale={{}})", min_scale, "a number, 0 or more")
        check_choice(f"mean of {name}", mean, MEANS)
        super().__init__(
            event_shape, latent_dim, 1 if fixed or scale == "learned" else 2, net, **net_args
        )
        self.mean = MEANS[mean]()
        self.min_scale, self.one_scale = min_scale, scale == "per_image"
        # the spread of images in [0, 1] about their mean: a start that is neither blind nor certain
        if self.per_pixel == 1:
            self.log_of("scale", fixed, start=0.25)

    @abstractmethod
    def law(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """The law of each pixel, its location ``(*batch, *event_shape)``."""

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        location, *raw_scale = self.outputs(context)
        if raw_scale and self.one_scale:
            pixels = tuple(range(-len(self.event_shape), 0))
            raw_scale = [raw_scale[0].mean(pixels, keepdim=True)]
        scale = F.softplus(raw_scale[0]) + self.min_scale if raw_scale else self.log_scale.exp()
        return self.law(self.mean(location), scale).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The location; a per-pixel scale is left as it is."""
        location = mean
        if isinstance(self.mean, nn.Sigmoid):
            location = inner_logit(mean)
        elif isinstance(self.mean, nn.Tanh):  # tanh(u) = 2 sigmoid(2 u) − 1
            location = inner_logit((mean + 1) / 2) / 2
        return location, *[None] * (self.per_pixel - 1)


class Gaussian(LocationScale):
    """x_d | z ~ N(μ_d(z), σ²): real-valued pixels (AEVB, appendix C.2).

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        scale: σ, in units of a pixel: a positive number (1.0 is the textbook N(x; x̂, I));
            ``learned`` (one, shared by all pixels); ``per_pixel`` (σ_d(z), a second output of the
            decoder); or ``per_image`` (σ(z), from that output's mean over the pixels).
        mean: ``identity``; ``sigmoid``, which keeps μ in (0, 1), as AEVB for the Frey faces; or
            ``tanh``, in (−1, 1).
        min_scale: added to a σ that depends on z, 0 or more. Without it a pixel that never varies
            has an unbounded density.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a number out of its range, an unknown word or network.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), appendix C.2.
    """

    def law(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """N(μ, σ²)."""
        return dist.Normal(location, scale)
