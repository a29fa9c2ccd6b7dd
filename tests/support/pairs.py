"""One small VAE on 12 binary pixels, written in every way that Pyro's users write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

PIXELS, LATENT, HIDDEN = 12, 2, 16


def binary_images(size: int = 64, pixels: int = PIXELS) -> Tensor:
    """Two kinds of images with noise: something to learn."""
    random = torch.Generator().manual_seed(5)
    kind = torch.randint(0, 2, (size, 1), generator=random).float()
    pattern = (torch.arange(pixels) % 2).float()
    probability = 0.1 + 0.8 * (kind * pattern + (1 - kind) * (1 - pattern))
    return (torch.rand(size, pixels, generator=random) < probability).float()


class Decoder(nn.Module):
    """z to logits."""

    def __init__(self, latent_dim: int = LATENT, pixels: int = PIXELS) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, pixels)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(…, latent_dim) to (…, pixels)."""
        logits: Tensor = self.layers(z)
        return logits


class Encoder(nn.Module):
    """x to a location and a scale."""

    def __init__(self, latent_dim: int = LATENT, pixels: int = PIXELS) -> None:
        super().__init__()
        self.hidden = nn.Linear(pixels, HIDDEN)
        self.loc, self.log_scale = nn.Linear(HIDDEN, latent_dim), nn.Linear(HIDDEN, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, pixels) to two (…, latent_dim)."""
        hidden = torch.tanh(self.hidden(x))
        return self.loc(hidden), self.log_scale(hidden).exp()


class Model(PyroModule):
    """A PyroModule that calls its network ``net``, as its guide does."""

    def __init__(self, latent_dim: int = LATENT, pixels: int = PIXELS, plate: str = "data") -> None:
        super().__init__()
        self.net, self.latent_dim, self.plate = Decoder(latent_dim, pixels), latent_dim, plate

    def forward(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate(self.plate, x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class Guide(PyroModule):
    """Its guide."""

    def __init__(self, latent_dim: int = LATENT, pixels: int = PIXELS, plate: str = "data") -> None:
        super().__init__()
        self.net, self.plate = Encoder(latent_dim, pixels), plate

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate(self.plate, x.shape[0]):
            loc, scale = self.net(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class TutorialVAE(nn.Module):
    """The class of pyro.ai/examples/vae.html: an nn.Module with two methods, which register the
    networks as they run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def model(self, x: Tensor) -> Tensor:
        """p(x, z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], LATENT, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], LATENT, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            probability = torch.sigmoid(self.decoder(z))
            pyro.sample("obs", dist.Bernoulli(probability, validate_args=False).to_event(1), obs=x)
            return probability

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class Constrained(PyroModule):
    """A model with a PyroParam, and a guide that has one too, of the same name."""

    def __init__(self, guide: bool) -> None:
        super().__init__()
        self.net: nn.Module = Encoder() if guide else Decoder()
        self.is_guide = guide
        self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        """p(x, z) or q(z | x)."""
        with pyro.plate("data", x.shape[0]):
            if self.is_guide:
                loc, scale = self.net(x)
                pyro.sample("z", dist.Normal(loc, scale * self.scale).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), self.scale).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


def pyro_modules() -> tuple[Any, Any]:
    """Two PyroModules; both call their net ``net``."""
    return Model(), Guide()


def bound_methods() -> tuple[Any, Any]:
    """The tutorial's class."""
    vae = TutorialVAE()
    return vae.model, vae.guide


def functions() -> tuple[Any, Any]:
    """Plain functions with pyro.module and pyro.param; another plate in each."""
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        pyro.module("net", decoder)
        shift = pyro.param("shift", torch.zeros(PIXELS))
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("code", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=decoder(z) + shift).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", encoder)
        widen = pyro.param("widen", torch.tensor(0.9), constraint=constraints.positive)
        with pyro.plate("batch", x.shape[0]):
            loc, scale = encoder(x)
            pyro.sample("code", dist.Normal(loc, scale * widen).to_event(1))

    return model, guide


def closures() -> tuple[Any, Any]:
    """Functions that register nothing: the networks are what they close over."""
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


def constrained() -> tuple[Any, Any]:
    """PyroModules with PyroParams."""
    return Constrained(guide=False), Constrained(guide=True)


FORMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "PyroModules": pyro_modules,
    "bound methods": bound_methods,
    "functions": functions,
    "closures": closures,
    "PyroParams": constrained,
}


def fresh(form: str, seed: int = 0) -> tuple[Any, Any]:
    """The pair in this form, its networks drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FORMS[form]()
