"""Log densities and log importance weights of any pair, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.fields import argument_of, as_fields
from pyro_vae.formatting import Printed
from pyro_vae.pair import observed_support
from pyro_vae.pair.comparison import Independence, independence
from pyro_vae.pair.nodes import Fields
from pyro_vae.pair.observed_support import check_all_support
from pyro_vae.pair.program import without_scales
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.supports import support_notes
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
    """The log densities of every site at draws of the guide, each ``(K, B)``, in nats.

    They are unscaled, so that log p(x, z) is their sum. Modules run in eval mode. Gradients flow
    where they are enabled.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: a batch of images ``(B, *event_shape)``.
        num_particles: K, draws for each image.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        ``SiteTerms``: by site name ``observed`` (log p(x | …)), ``prior`` (log p(z | …)) and
        ``guide`` (log q(z | …)), each with ``log_prob``, ``(K, B)``, and ``value``.

    Raises:
        UserError: the two programs do not fit together: which site, which plate, which shapes, and
            what to change.
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
    """log importance weights log p(x, z_k) − log q(z_k | x), z_k ~ q(z | x), in nats.

    Example::

        log_w = pv.log_weights(model, guide, x, num_particles=100)  # (100, B)
        log_px = log_w.logsumexp(0) - math.log(100)  # L_K of each image

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: a batch of images ``(B, *event_shape)``.
        num_particles: K, draws for each image.
        ignore_scales: whether to leave out ``poutine.scale`` in the programs.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        ``(K, B)``, in nats. Gradients flow where they are enabled.

    Raises:
        UserError: as `log_densities`; or these are not the log weights of each image's p(x): a
            subsampling plate, a scaled site, a point mass, images that depend on each other.

    Reference:
        Burda et al. 2016, equation 8.
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
    could be known.
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


LAYOUT_WORDS = {
    "plate": "an outer plate; the guide's network runs once for each image",
    "rows": "an outer plate around the guide, and the model on flattened rows: the guide's "
    "network runs once for each image",
    "repeat": "each image is repeated; the guide's network runs once for each draw",
}


@dataclass(frozen=True)
class PairReport(Printed):
    """What was found out about a pair that can be trained; ``print`` shows it in words."""

    structure: Structure
    layout: str  # of many draws: plate, rows or repeat; none where log p(x) can't be had
    fields: tuple[str, ...]  # those that the two programs name
    warnings: tuple[str, ...] = ()  # images that depend on each other, supports that differ

    def __str__(self) -> str:
        s = self.structure
        asked = "; ".join(f"{name!r} asks {what}" for name, what in s.asked.items())
        subsampling = " (subsampling: fit only, no log p(x))" if s.subsampling else ""
        told: dict[str, Any] = {
            f"data plate: {s.plates[0]!r} in the model, {s.plates[1]!r} in the guide{subsampling}": s.plates[
                0
            ],
            **dict.fromkeys(s.words(), True),
            f"layout of many draws: {LAYOUT_WORDS.get(self.layout)}": self.layout,
            f"fields: {', '.join(self.fields)}": self.fields,
            f"not reparameterised: {', '.join(s.score_function)} (Trace_ELBO's "
            "score-function gradients)": s.score_function,
            f"trained only by Pyro's own objectives: {asked}": asked,
            f"scored only at their own last draw:  {', '.join(s.own_draws_only)} (no STL, "
            "DReG, AIS)": s.own_draws_only,
            f"no STL, no DReG: {s.not_held}": s.not_held,
            f"point masses: {', '.join(s.point_masses)} (an autoencoder: no log p(x))": s.point_masses,
        }
        sites = f"{', '.join(s.observed)}; latent sites: {', '.join(s.latents) or 'none'}"
        lines = [line for line, holds in told.items() if holds]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join([f"observed sites: {sites}", *lines])


@takes_fields
def check_pair(
    model: Callable[..., Any], guide: Callable[..., Any], x: Any, **fields: Any
) -> PairReport:
    """Check that a model and a guide fit together, before training. Nothing is trained or changed.

    Both programs run on five images like ``x``.

    Example::

        print(pv.check_pair(model, guide, x))  # sites, plates, layout, warnings

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        A `PairReport`, which prints the sites, the plates, which KLs are closed, and what the pair
        can't be used for.

    Raises:
        UserError: they do not fit together: which site, which plate, both shapes, and what to
            change.
    """
    pair, images, named = prepare(model, guide, x, fields, 1, may_create=True)
    structure = pair.structure(images, named, scored=False)
    check_all_support(pair, images, named)
    wanted = sorted((pair.model.field_names | pair.guide.field_names) & {*map(argument_of, named)})
    if structure.unscored:
        return PairReport(structure, "", tuple(wanted), (f"fit only: {structure.unscored}",))
    notes = support_notes(pair, images, named)
    if site := independence(pair, images, named).site:
        notes += (f"site {site} depends on the other images of its batch: fit only, no log p(x)",)
    return PairReport(structure, pair.layout(images, named), tuple(wanted), notes)
