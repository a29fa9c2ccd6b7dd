"""Posterior means of the latents, and reconstructions.

Everything runs in eval mode, without gradients, in batches, and leaves the caller's random state as
it was. Results are on the CPU, by site name, with one row for each image: ``(N, *event)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.analysis.latents import join, steps_as_one
from pyro_vae.data.batches import Resident
from pyro_vae.data.loaders import make_source
from pyro_vae.devices import find_device
from pyro_vae.pair.layouts import posterior_weights, trace_model
from pyro_vae.pair.nodes import Fields, copies, latent_nodes, plain_draw, sample_nodes
from pyro_vae.pair.observed_support import check_support_of_set
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Geometry
from pyro_vae.validation import check_choice, check_count

AVERAGED_DRAWS = 100
"""Draws that replace a mean that a distribution doesn't have: an error of a tenth of its
standard deviation.
"""


@takes_fields
def encode(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    seed: int = 0,
    **fields: Any,
) -> dict[str, Tensor]:
    """The posterior mean of each latent site: the mean of q(z | x).

    Sites that depend on other latents are computed at the means of those (at a draw where they are
    discrete). The mean of a distribution without a closed mean, such as a flow, is the average of
    100 draws. So is the mean of a Categorical's index, which then is no index.

    Example::

        z = pv.encode(model, guide, x)["z"]  # (N, D)

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``, or a Dataset or DataLoader.
        batch_size: images in one run.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        seed: seed of what is drawn.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        Site name -> mean, ``(N, *event)``, on the CPU.

    Raises:
        UserError: the programs do not fit together; parameters that were never fitted.
    """
    with visit_images(model, guide, x, batch_size, device, seed, fields) as (pair, batches):
        parts = []
        for images, named in batches:
            at = pair.structure(images, named).geometry
            with _AtMeans() as means:
                nodes = latent_nodes(plain_draw(pair.guide, images, named))
            parts.append({n: at.rows(node, means.found[n]).cpu() for n, node in nodes.items()})
    return join(parts)


@takes_fields
def reconstruct(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    seed: int = 0,
    at: str = "mean",
    **fields: Any,
) -> dict[str, Tensor]:
    """The reconstruction of each image: the mean of p(x | z) at each observed site.

    z is the mean of q(z | x), as in `encode`, or one draw of it. A discrete latent has no mean that
    the model could take, and is drawn; where the guide does not have it, it is summed out: Σ_c p(c
    | x, z) E[x | z, c]. Sites of a sequence, ``x_1``, ``x_2``, …, come as one tensor ``x``, ``(N,
    T, *event)``.

    Example::

        images = pv.reconstruct(model, guide, x)["x"]  # (N, *event_shape)

    Args:
        model, guide, x, batch_size, device, seed: as in `encode`.
        at: ``mean`` or ``sample``: which z.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        Site name -> mean of p(x | z), ``(N, *event)``, on the CPU.

    Raises:
        UserError: the programs do not fit together; parameters that were never fitted; ``at`` is
            neither.
    """
    check_choice("place to reconstruct at", at, ["mean", "sample"])
    with visit_images(model, guide, x, batch_size, device, seed, fields) as (pair, batches):
        parts = []
        for images, named in batches:
            geometry = pair.structure(images, named).geometry
            with _AtMeans() if at == "mean" else Messenger():
                drawn = plain_draw(pair.guide, images, named)
            trace = trace_model(pair.model, drawn, images, named, geometry)
            shares = posterior_weights(trace, len(images), geometry) if geometry.summed else None
            observed = {n: node for n, node in sample_nodes(trace) if node["is_observed"]}
            parts.append({n: _mean(node, shares, geometry) for n, node in observed.items()})
    return steps_as_one(join(parts))


def _mean(node: Any, shares: Tensor | None, at: Geometry) -> Tensor:
    """The mean of a site's distribution, the images first; where that has values of c in front, the
    mean under p(c | x, z), ``shares`` ``(*values, B)``.
    """
    fn, mean, dim = node["fn"], mean_of(node["fn"]), at.frame(node).dim
    if shares is None or len(fn.batch_shape) <= -at.particle_dim:  # c does not enter it
        return at.rows(node, mean).cpu()
    plates = [1] * -at.particle_dim
    plates[dim] = shares.shape[-1]
    laid = shares.reshape(*shares.shape[:-1], *plates, *[1] * fn.event_dim)
    total = (laid * mean).flatten(0, shares.dim() - 2).sum(0).movedim(dim - at.particle_dim, 0)
    own = {f.dim for f in node["cond_indep_stack"] if f.vectorized}
    others = [other for other in range(at.particle_dim, 0) if other != dim]
    return total.squeeze([1 + i for i, other in enumerate(others) if other not in own]).cpu()


def mean_of(fn: Any) -> Tensor:
    """The distribution's mean, batch and event shape, or the average of 100 draws."""
    try:
        mean: Tensor = fn.mean
    except NotImplementedError:
        mean = torch.full((), torch.nan)
    if not bool(mean.isnan().any()):
        return mean
    draw = fn.sample()
    total = draw if draw.is_floating_point() else draw.to(torch.get_default_dtype())
    for _ in range(AVERAGED_DRAWS - 1):  # one at a time: memory does not grow with their number
        total = total + fn.sample()
    averaged: Tensor = total / AVERAGED_DRAWS
    return averaged


class _AtMeans(Messenger):
    """Each latent sample statement returns its distribution's mean; a discrete one is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        mean = self.found[msg["name"]] = mean_of(msg["fn"])
        if not msg["fn"].support.is_discrete:
            msg["value"], msg["done"] = mean, True


@contextmanager
def visit_images(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    batch_size: int,
    device: str | torch.device,
    seed: int,
    fields: Mapping[str, Any],
) -> Iterator[tuple[Pair, Iterable[tuple[Tensor, Fields]]]]:
    """The pair, in eval mode, without gradients, with random numbers of its own; and the batches,
    in its dtype.
    """
    place = find_device(device)
    pair = Pair.of(model, guide).to(place)
    check_count("batch_size", batch_size)
    source = make_source(x, fields, batch_size, place)
    with pair.active(may_create=False):
        first, named = next(iter(source.in_order()))
        # meets modules that closures hide, so that eval mode reaches them
        pair.structure(pair.cast(first, named), named)
        if isinstance(source, Resident) and bool(source.x.isnan().any()):
            check_support_of_set(pair, source.num_images, source.part)
    with pair.measuring(place, seed):
        # copies: a program may write into its batch
        yield pair, (copies(pair.cast(images), named) for images, named in source.in_order())
