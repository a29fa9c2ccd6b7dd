"""Log densities and log weights of any pair, as tensors: what every estimator of log p(x) stands
on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.fields import as_fields
from pyro_vae.pair import observed_support
from pyro_vae.pair.independence import Independence, independence
from pyro_vae.pair.nodes import Fields
from pyro_vae.pair.program import without_scales
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.terms import SiteTerms
from pyro_vae.tensors import as_images
from pyro_vae.validation import check_count


@takes_fields
def log_densities(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_particles: int = 1,
    **fields: Any,
) -> SiteTerms:
    """Unscaled log densities of every site at ``num_particles`` draws of the guide, each ``(K,
    B)``, in nats.

    The modules run in eval mode; gradients flow where they are enabled.

    Raises:
        UserError: the pair is no pair (which site, which plate, which shapes, what to change).
    """
    pair, images, named = prepare(model, guide, x, fields, num_particles)
    with pair.active(training=False, may_create=False):
        return pair.run(images, named, num_particles)


@takes_fields
def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_particles: int = 1,
    ignore_scales: bool = False,
    **fields: Any,
) -> Tensor:
    """log p(x, z_k) − log q(z_k | x) with z_k ~ q(z | x): ``(K, B)``, in nats (Burda et al. 2016,
    equation 8).

    Args:
        ignore_scales: whether ``poutine.scale`` in the programs is without effect here.

    Raises:
        UserError: as `log_densities`; and where these are not the log weights of each image's p(x):
            a subsampling plate, a scaled site, a point mass, images that depend on each other.
    """
    pair, images, named = prepare(model, guide, x, fields, num_particles)
    with pair.active(training=False, may_create=False), without_scales(ignore_scales):
        refuse_unscorable(pair, images, named)
        observed_support.check_all_support(pair, images, named)
        return pair.run(images, named, num_particles, every_value=True).log_weights()


def prepare(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    fields: dict[str, Any],
    num_particles: int,
    *,
    may_create: bool = False,
) -> tuple[Pair, Tensor, dict[str, Tensor]]:
    """The pair, understood, and a batch in its dtype with its fields and ``index``."""
    check_count("num_particles", num_particles)
    pair = Pair.of(model, guide)
    images = as_images(x, missing=True)
    named = as_fields(fields, len(images))
    named.setdefault("index", torch.arange(len(images), device=images.device))
    observed_support.check_fields(pair, named)
    with pair.active(may_create=may_create):
        images = pair.cast(images, named)
        pair.structure(images, named, scored=False)
    return pair, images, named


def refuse_unscorable(pair: Pair, x: Tensor, fields: Fields) -> None:
    """Raise where log p − log q is not an importance weight of one image, whatever the structure or
    the values say.
    """
    refuse_bad_weights(pair.structure(x, fields))
    refuse_interacting(pair, x, fields)


def refuse_interacting(pair: Pair, x: Tensor, fields: Fields) -> Independence:
    """Raise where an image's density depends on the other images of its batch; else whether that
    could be told.
    """
    found = independence(pair, x, fields)
    if found.site:
        raise UserError(
            f"site {found.site} depends on the other images of its batch (a roll, a mean or a "
            "rank over rows, a BatchNorm of one's own), so log p(x) of one image is not "
            "defined: make each row's distribution a function of that row alone"
        )
    return found


def refuse_bad_weights(structure: Structure) -> None:
    """Raise where log p − log q is not an importance weight of one image."""
    if structure.point_masses:
        raise UserError(
            f"the guide's site {structure.point_masses[0]!r} is a point mass (Delta), which has "
            "no density. There is no log p(x) of an autoencoder: use a guide with a density, "
            "such as MeanField"
        )
    refuse_subsampling(structure)


def refuse_no_latents(structure: Structure) -> None:
    """Raise where the guide samples nothing, so that there is no representation."""
    if not structure.latents:
        why = f" ({', '.join(structure.summed)} is summed out)" if structure.summed else ""
        raise UserError(
            f"the guide samples no latent site{why}: there is no q(z | x) to show, and log p(x) "
            "is exact"
        )


def refuse_own_draws(structure: Structure, why: str) -> None:
    """Raise where a site of the guide has a density at its own last draw alone."""
    if structure.own_draws_only:
        raise UserError(
            f"the guide's site {structure.own_draws_only[0]!r} can only score its own last draw "
            f"(such as a planar flow), but {why}"
        )


def refuse_subsampling(structure: Structure) -> None:
    """Raise where a plate's scale would enter the log weights."""
    if structure.subsampling:
        raise UserError(
            f"the data plate {structure.plates[0]!r} subsamples, so its scale would be in every "
            "log weight. For log p(x) write pyro.plate(name, x.shape[0]), without the size of "
            "the whole set"
        )
