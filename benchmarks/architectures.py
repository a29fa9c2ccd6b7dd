"""The architectures of the benchmarks, and their data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_vae import guides, models


@dataclass(frozen=True)
class Architecture:
    """Shapes, layers and batch of one benchmark."""

    name: str
    event_shape: tuple[int, ...]
    latent_dim: int
    batch_size: int
    net: str = "MLP"
    net_args: dict[str, Any] = field(default_factory=dict)

    def images(self, num_images: int, seed: int = 0) -> Tensor:
        """Random binary images, ``(N, *event_shape)``."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(num_images, *self.event_shape, generator=generator) < 0.13).float()

    def pair(self, seed: int = 0) -> tuple[models.GenerativeModel, guides.MeanField]:
        """Our model and guide, initialised from ``seed``."""
        torch.manual_seed(seed)
        likelihood = models.Bernoulli(
            self.latent_dim, self.event_shape, net=self.net, **self.net_args
        )
        model = models.GenerativeModel(models.StandardNormal(self.latent_dim), likelihood)
        return model, guides.MeanField(
            self.event_shape, self.latent_dim, net=self.net, **self.net_args
        )

    def networks(self, seed: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
        """The encoder, to (μ, log σ), and the decoder, to logits, as plain torch: what every other
        contestant starts from.
        """
        return plain_networks(*self.pair(seed))


def plain_networks(
    model: models.GenerativeModel, guide: guides.MeanField
) -> tuple[nn.Sequential, nn.Sequential]:
    """The two networks of a pair of ours, without what we put around them."""
    return guide.net.layers, model.likelihood.net.layers


def mlp(
    name: str, pixels: int, hidden: tuple[int, ...], latent: int, batch: int, activation: str
) -> Architecture:
    """A perceptron on flat images."""
    return Architecture(
        name, (pixels,), latent, batch, net_args={"hidden": hidden, "activation": activation}
    )


ARCHITECTURES = {
    a.name: a
    for a in (
        mlp("mlp400 b128", 784, (400,), 20, 128, "softplus"),
        mlp("iwae b20", 784, (200, 200), 50, 20, "tanh"),
        mlp("iwae b100", 784, (200, 200), 50, 100, "tanh"),
        mlp("digits b64", 64, (128,), 8, 64, "softplus"),
        Architecture("conv b64", (3, 32, 32), 64, 64, net="Conv"),
    )
}


def large_digits(num_images: int) -> Tensor:
    """scikit-learn's 8×8 digits enlarged to 28×28 and binarized at 1/2, flat: images that a
    784-pixel model can learn.
    """
    grey = torch.from_numpy(load_digits().images[:num_images] / 16.0).float()[:, None]
    enlarged = nn.functional.interpolate(grey, size=(28, 28), mode="bilinear", align_corners=False)
    return (enlarged > 0.5).float().flatten(1)
