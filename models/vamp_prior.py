"""VampPrior: variational mixture of posteriors."""

from __future__ import annotations

import warnings
from contextlib import suppress
from math import log
from typing import TYPE_CHECKING, Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.nn import Net
from pyro_vae.nn.conditional import Prior, StartsFromData, in_order
from pyro_vae.protocols import Local, hook
from pyro_vae.validation import check_whole

if TYPE_CHECKING:
    from pyro_vae.training.init import TrainingImages

MOST_PASSES = 5000
"""Of a flow's networks for the density of one z, without a warning: for 100 images, 1 s (IAF) to 12
s (NSF) on one core.
"""


class _EvenMixture(dist.MixtureSameFamily):
    """Equal weights; each z is put before every component in full, as not every flow broadcasts
    it.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log 1/C Σ_c q_c(z)."""
        components = self.component_distribution
        num_components = components.batch_shape[-1]
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        each = components.log_prob(value.unsqueeze(-2).expand(*batch, num_components, -1))
        log_prob: Tensor = torch.logsumexp(each, dim=-1) - log(num_components)
        return log_prob


class VampPrior(StartsFromData, Prior):
    """p(z) = 1/C Σ_c q(z | u_c), the guide's own q at learned pseudo-inputs u_c (VampPrior).

    ``encoder`` is the guide: ``local(u)`` gives η, ``build(η)`` the distribution. The encoder's
    parameters are the guide's: freezing or saving one program leaves the other alone. Pseudo-inputs
    have pixels in (0, 1), σ of what is learned, times the encoder's ``input_scale``; the first
    `fit` puts them at training images. Each z is scored under every component, which costs C times
    the encoder's ``scoring_passes``. An autoregressive flow inverts each z under each component:
    take few of them there; a warning says so.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        encoder: the guide, with ``local`` and ``build`` (`pyro_vae.protocols.Local`).
        components: C, the number of pseudo-inputs.

    Raises:
        UserError: the encoder has no density at a z of another image (a table, a point mass, a
            planar flow, a guide of images with classes).

    Reference:
        Tomczak and Welling 2018, "VAE with a VampPrior", equation 9.
    """

    def __init__(
        self, event_shape: tuple[int, ...], latent_dim: int, encoder: Any, components: int = 500
    ) -> None:
        event_shape, latent_dim = in_order(event_shape, latent_dim)
        super().__init__(latent_dim)
        check_whole("VampPrior(components={!r})", components, "components")
        self.pseudo_logits = nn.Parameter(torch.randn(components, *event_shape))
        self.register_buffer("started", torch.tensor(False))
        net = getattr(encoder, "net", None)
        self.input_scale = net.input_scale if isinstance(net, Net) else 1.0
        self._encoder = (encoder,)  # in a tuple, so that its parameters are not the model's
        self._check_encoder()
        self._warn_of_inversions(components)

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, ``(components, *event_shape)``."""
        return self.input_scale * self.pseudo_logits.sigmoid()

    def start_from_data(self, data: TrainingImages) -> None:
        """`start_from` the images that are trained on."""
        self.start_from(data.sample)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Put the pseudo-inputs at the first images, ``(N, *event_shape)``; those for which there
        is none stay.
        """
        images = images[: len(self.pseudo_logits)].to(self.pseudo_logits) / self.input_scale
        self.pseudo_logits[: len(images)] = images.clamp(0.01, 0.99).logit()
        self.started.fill_(True)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """The mixture, batch shape ``()``; the context is not used."""
        (encoder,) = self._encoder
        components = encoder.build(encoder.local(self.pseudo_inputs))
        weights = dist.Categorical(logits=torch.zeros_like(self.pseudo_logits.flatten(1)[:, 0]))
        return _EvenMixture(weights, components)

    def _check_encoder(self) -> None:
        """Once, on two pseudo-inputs: q(z | u) at a z that it didn't draw."""
        (encoder,) = self._encoder
        name = type(encoder).__name__
        if not isinstance(self._encoder[0], Local):
            raise UserError(
                f"VampPrior(encoder={name}): expected a guide with local(x) and build(η), such as "
                "MeanField"
            )
        modes = [(module, module.training) for module in encoder.modules()]
        scores = False
        # a flow that has no inverse, a table without these rows: each says no in its own way
        with suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
            encoder.eval()
            law = encoder.build(encoder.local(self.pseudo_inputs[:2].detach()))
            scores = bool(law.log_prob(law.sample().flip(0)).isfinite().all())
        for module, mode in modes:
            module.training = mode
        if not scores:
            raise UserError(
                "VampPrior needs the density q(z | u) of any z for any image u. The guide "
                f"{name} does not have it (it is a point mass, a table, a guide that needs "
                "classes, or a flow that scores only its own draws): use a guide such as "
                "MeanField, FullRank or Householder"
            )

    def _warn_of_inversions(self, components: int) -> None:
        """Said and not refused: a machine may have the time and the memory."""
        (encoder,) = self._encoder
        passes = hook(encoder, "scoring_passes")
        if components * passes > MOST_PASSES:
            warnings.warn(
                f"VampPrior scores every z under {components} components, and "
                f"{type(encoder).__name__} inverts its flow for each of them with {passes} "
                f"passes of its networks. These are {components * passes} passes for one z, in "
                "every training step and evaluation. Take "
                f"components={max(1, MOST_PASSES // passes)} or fewer, or a guide with a "
                "closed density, such as MeanField, FullRank or Householder",
                stacklevel=3,
            )
