"""Pythae: its VAE on our networks, its trainer with fused Adam and no progress bar, its `get_nll`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler
from torch import Tensor, nn

from benchmarks.architectures import Architecture
from benchmarks.contestants import Step, Train, timed

logging.getLogger("pythae").setLevel(logging.ERROR)
logging.getLogger("pythae.trainers.base_trainer.base_trainer").setLevel(
    logging.ERROR
)  # it sets its own level


class Encoder(BaseEncoder):
    """μ and log σ²."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> ModelOutput:
        """Pythae's names for them."""
        loc, log_scale = self.layers(x).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """Probabilities, as its "bce" wants them."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> ModelOutput:
        """Pythae's name for them."""
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))


def _vae(
    encoder: nn.Module, decoder: nn.Module, event_shape: tuple[int, ...], latent_dim: int
) -> VAE:
    config = VAEConfig(input_dim=event_shape, latent_dim=latent_dim, reconstruction_loss="bce")
    return VAE(config, Encoder(encoder), Decoder(decoder))


def _trainer(at: Architecture, images: Tensor) -> Any:
    folder = tempfile.mkdtemp(prefix="pythae-")
    config = BaseTrainerConfig(
        output_dir=folder,
        learning_rate=1e-3,
        per_device_train_batch_size=at.batch_size,
        optimizer_cls="Adam",
        optimizer_params={"fused": True},
        no_cuda=True,
    )
    vae = _vae(*at.networks(), at.event_shape, at.latent_dim)
    trainer = BaseTrainer(
        vae, BaseDataset(images, torch.zeros(len(images))), training_config=config
    )
    trainer.prepare_training()
    trainer.callback_handler = CallbackHandler([], vae)
    return trainer


def step(at: Architecture, x: Tensor) -> Step:
    """The body of `BaseTrainer.train_step` on one batch."""
    trainer = _trainer(at, x)
    inputs = {"data": x}
    trainer.model.train()

    def run() -> float:
        output = trainer.model(inputs, epoch=1, dataset_size=len(x), uses_ddp=False)
        trainer._optimizers_step(output)
        return float(output.loss.item()) * len(x)

    return run


def epochs(at: Architecture, images: Tensor) -> Train:
    """Passes of `BaseTrainer.train_step`, which feeds itself from a DataLoader."""
    trainer = _trainer(at, images)
    return timed(lambda: trainer.train_step(1) * len(images), len(images))


def log_px(
    encoder: nn.Module, decoder: nn.Module, latent_dim: int, num_samples: int, chunk: int
) -> Callable[[Tensor], Tensor]:
    """`get_nll` without gradients: the images' mean log p(x)."""
    vae = _vae(encoder, decoder, (784,), latent_dim).eval()

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return torch.tensor(vae.get_nll(x, n_samples=num_samples, batch_size=chunk))

    return run
