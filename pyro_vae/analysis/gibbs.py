"""Metropolis-within-Gibbs draws of p(x | y) under a model p(x, z), where y is what is known of the
image x.

A chain has an image x and its latents z, and repeats three moves that leave p(x, z | y) invariant:

1. z' ~ q(z | x), accepted with min(1, p(x, z') q(z | x) / (p(x, z) q(z' | x))): a
Metropolis–Hastings step whose proposal
   is the guide (Mattei & Frellsen 2018, section 3.3). Without the test (``gibbs``) this is
   pseudo-Gibbs (Rezende et al. 2014, appendix F), whose law is that of the model only where the
   guide is the model's posterior.
2. z + γ (z₁ − z₂), z₁ and z₂ being two more draws of q(z | x), accepted with min(1, p(x, z') /
   p(x, z)), as the difference is as likely as its opposite. The first move alone leaves z where it
   is for a long time, as its weights vary by several nats: an x that is drawn pixel by pixel is
   not like those that the guide was fitted to. This one needs the guide's scale only, not its
   place; it moves the latents that have any real value, and is left out of ``gibbs``.
3. x given z and y, pixel by pixel (`Redraw`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.chains import Chains, Redraw, Restored
from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.generate import sample
from pyro_vae.analysis.latents import ROWS, whole_images
from pyro_vae.errors import UserError
from pyro_vae.fields import as_fields
from pyro_vae.pair.log_weights import refuse_own_draws, refuse_unscorable
from pyro_vae.pair.nodes import Fields, repeated
from pyro_vae.pair.runtime import Pair
from pyro_vae.rng import check_seed, mix
from pyro_vae.validation import check_choice, check_count

METHODS = ("metropolis", "gibbs")


Start = Callable[[Callable[[int], Tensor]], Tensor]
"""First states ``(K, N, *event_shape)``; it is given ``drawn``, of which ``drawn(i)`` are as many
draws x ~ p(x), others for each i.
"""


def restore(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    known: Tensor,
    start: Start,
    redraw: Redraw,
    fields: Mapping[str, Any],
    num_samples: int,
    num_steps: int,
    method: str,
    seed: int,
    device: str | torch.device,
) -> Restored:
    """Run ``num_samples`` chains at each image.

    Args:
        known: y, or which pixels it lacks, ``(N, *event_shape)``.
        start: gives the first states.
        redraw: the move of x.

    Raises:
        UserError: no chain can be run with this pair, in one sentence: a point mass, a subsampling
            plate, no latent site, a guide that can't score any z but its own draw, pixels that
            depend on each other given z, an x that is observed in parts.
    """
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps)):
        check_count(name, value)
    check_seed(seed)
    check_choice("method", method, METHODS)
    named, shape = as_fields(fields, len(known)), known.shape

    def drawn(stream: int) -> Tensor:
        own, (_, rows) = mix(seed, 1, stream) % 2**32, repeated(known, named, num_samples)
        options: dict[str, Any] = {"guide": guide, "device": device, "seed": own, **rows}
        like, number = torch.zeros(1, *shape[1:]), num_samples * len(known)
        images = whole_images(sample(model, number, like, mean=False, **options), shape[1:])
        return images.reshape(num_samples, *shape)

    states = start(drawn)
    size, done, real = max(1, ROWS // num_samples), 0, known.is_floating_point()
    parts: list[Restored] = []
    with visit_images(model, guide, states[0], size, device, seed, named) as (pair, batches):
        for images, own in batches:
            rows = slice(done, done + len(images))
            done = rows.stop
            if not parts:
                _refuse_unfit(pair, images, own, method)
            of_images = known[rows].to(images.device, images.dtype if real else None)
            of_rows, more = repeated(of_images, own, num_samples)
            x = states[:, rows].flatten(0, 1).to(images)
            chains = Chains(pair, x, more, partial(redraw, of_rows))
            parts.append(chains.run(num_samples, num_steps, method))

    def joined(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=dim)

    moments = map(joined, ("mean", "sd", "se", "acceptance"))
    return Restored(joined("samples", 1), joined("decoded", 1), *moments, method, num_steps)


def _refuse_unfit(pair: Pair, x: Tensor, fields: Fields, method: str) -> None:
    structure = pair.structure(x, fields)
    refuse_unscorable(pair, x, fields)
    if not structure.latents:
        raise UserError(
            "the guide draws no latent site, but a chain needs a z: given z the pixels are "
            "independent"
        )
    pair.run(x, fields).log_weights()  # refuses scaled sites
    if method == "metropolis":
        refuse_own_draws(
            structure,
            "the Metropolis test scores others: use a guide whose log_prob takes any z, or "
            "method='gibbs'",
        )
