"""What a pair makes of images, and a model of latents, for any pair: encode, reconstruct, sample,
decode.

All four run in eval mode, without gradients, in batches, and leave the caller's random state as it
was. Results are on
the CPU, by site name, with one row an image: ``(N, *event)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.analysis.conditions import refuse_unconditioned
from pyro_vae.data.loaders import Resident, make_source
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.fields import arguments, as_fields
from pyro_vae.pair.dry_run import check_support_of_set
from pyro_vae.pair.layouts import (
    Geometry,
    latent_nodes,
    plain_draw,
    plate_size,
    posterior_weights,
    rows_first,
    sample_nodes,
    trace_model,
)
from pyro_vae.pair.program import ParameterStore
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.tensors import as_images
from pyro_vae.validation import check_count

AVERAGED_DRAWS = 100
"""Draws that stand in for a mean that a distribution doesn't have: an error of a tenth of its
standard deviation.
"""

PROBE_IMAGES = 11
"""Images of the trial run: a number that no other plate is likely to have, as the data plate is
known by its size.
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
    """The mean of q(z | x) at each latent site, ``(N, *event)``.

    Sites that depend on other latents are given those at their means (drawn, where they are
    discrete). A distribution without a mean, such as a flow, is averaged over 100 draws; so is a
    Categorical's index, which then is no index.

    Example::

        z = pv.encode(model, guide, x)["z"]  # (N, D)

    Raises:
        UserError: the pair is no pair; parameters that were never fitted.
    """
    with visit_images(model, guide, x, batch_size, device, seed, fields) as (pair, batches):
        parts = []
        for images, named in batches:
            at_pair = pair.structure(images, named).geometry
            with _AtMeans() as means:
                trace = plain_draw(pair.guide, images, named)
            parts.append(
                {
                    n: _rows_first(means.found[n], node, at_pair)
                    for n, node in latent_nodes(trace).items()
                }
            )
    return _join(parts)


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
    """The mean of p(x | z) at each observed site, ``(N, *event)``; z is the mean of q(z | x), or
    one draw of it.

    Means are understood as in `encode`; a discrete latent has none that the model could take, and
    is drawn. Where the guide
    lacks it, it is summed out: Σ_c p(c | x, z) E[x | z, c].

    Example::

        images = pv.reconstruct(model, guide, x)["x"]  # (N, *event_shape)

    Args:
        at: ``mean`` or ``sample``.

    Raises:
        UserError: the pair is no pair; parameters that were never fitted; ``at`` is neither.
    """
    if at not in ("mean", "sample"):
        raise UserError(did_you_mean("place to reconstruct at", str(at), ["mean", "sample"]))
    with visit_images(model, guide, x, batch_size, device, seed, fields) as (pair, batches):
        parts = []
        for images, named in batches:
            at_pair = pair.structure(images, named).geometry
            with _AtMeans() if at == "mean" else Messenger():
                drawn = plain_draw(pair.guide, images, named)
            trace = trace_model(pair.model, drawn, images, named, at_pair)
            observed = {n: node for n, node in sample_nodes(trace) if node["is_observed"]}
            if at_pair.summed:
                weights = posterior_weights(trace, len(images), at_pair)
                parts.append({n: _averaged(node, weights, at_pair) for n, node in observed.items()})
            else:
                parts.append(
                    {
                        n: _rows_first(mean_of(node["fn"]), node, at_pair)
                        for n, node in observed.items()
                    }
                )
    return _join(parts)


@takes_fields
def sample(
    model: Callable[..., Any],
    size: int,
    like: Tensor | None = None,
    mean: bool = True,
    guide: Callable[..., Any] | None = None,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    seed: int = 0,
    x: Any = None,
    **fields: Any,
) -> dict[str, Tensor]:
    """Draw z ~ p(z), and give at each observed site the mean of p(x | z), or a draw: ``(size,
    *event)``.

    A model that takes ``size`` is called as ``model(None, size=n)``; any other on zeros shaped as
    the images ``like``, its observed sites being sampled. A model that is conditioned on x itself
    (a CVAE, a library size) is given those images, ``x``.

    Example::

        images = pv.sample(model, 16)["x"]  # means of p(x | z), z ~ p(z)

    Args:
        like: images of the set, ``(≥ 1, *event_shape)``; only their shape is used.
        mean: means of p(x | z), or draws x ~ p(x | z).
        guide: the guide that the model was fitted with, where the model has parameters of its own
            (``pyro.param``).
        x: images that the model is conditioned on, ``(size, *event_shape)``, where it is.
        **fields: what the model is conditioned on besides, ``size`` rows.

    Raises:
        UserError: ``like``, ``x`` or ``guide`` is needed and was not given; parameters that were
            never fitted.
    """
    check_count("size", size)
    with _generation(
        model, guide, like, device, seed, as_fields(fields, size), _conditions(x, size)
    ) as generation:
        return _join(generation.run(rows, {}, mean) for rows in _slices(size, batch_size))


@takes_fields
def decode(
    model: Callable[..., Any],
    values: Mapping[str, Tensor],
    like: Tensor | None = None,
    mean: bool = True,
    guide: Callable[..., Any] | None = None,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    seed: int = 0,
    x: Any = None,
    **fields: Any,
) -> dict[str, Tensor]:
    """The mean of p(x | z), or a draw, at each observed site, ``(N, *event)``, given latent values
    ``(N, *event)``.

    Latent sites without values are drawn from the model. The other arguments are those of `sample`.

    Raises:
        UserError: as `sample`; an unknown site; values of another shape than the site's.
    """
    if len({len(value) for value in values.values()}) != 1:
        raise UserError(
            "values: expected one or more latent sites, each (N, *event) with the same N"
        )
    size = len(next(iter(values.values())))
    with _generation(
        model, guide, like, device, seed, as_fields(fields, size), _conditions(x, size)
    ) as generation:
        given = generation.check(values)
        return _join(generation.run(rows, given, mean) for rows in _slices(size, batch_size))


def _averaged(node: Any, weights: Tensor, at: Geometry) -> Tensor:
    """The mean under p(c | x, z), ``(*values, B)``, of a distribution that has c's values in front:
    rows first, as below.
    """
    fn, own, dim = (
        node["fn"],
        {f.dim for f in node["cond_indep_stack"] if f.vectorized},
        at.frame(node).dim,
    )
    mean = mean_of(fn)
    if len(fn.batch_shape) <= -at.particle_dim:  # c does not enter it
        return _rows_first(mean, node, at)
    plates = [1] * -at.particle_dim
    plates[dim] = weights.shape[-1]
    laid = weights.reshape(*weights.shape[:-1], *plates, *[1] * fn.event_dim)
    total = (laid * mean).flatten(0, weights.dim() - 2).sum(0).movedim(dim - at.particle_dim, 0)
    others = [other for other in range(at.particle_dim, 0) if other != dim]
    return total.squeeze([1 + i for i, other in enumerate(others) if other not in own]).cpu()


def mean_of(fn: Any) -> Tensor:
    """The distribution's mean, batch and event shape; the average of 100 draws where it has none."""
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
    """Every latent sample statement returns the mean of its distribution; a discrete one is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        mean = self.found[msg["name"]] = mean_of(msg["fn"])
        if not msg["fn"].support.is_discrete:
            msg["value"], msg["done"] = mean, True


class _Given(Messenger):
    """Latent sample statements return the values given for them, ``(N, *event)``, laid along the
    data plate.
    """

    def __init__(self, values: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
        super().__init__()
        self.values, self.dims = values, dims

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) in self.values:
            value = self.values[name]
            position = value.dim() - msg["fn"].event_dim + self.dims[name]
            msg["value"], msg["done"] = value.movedim(0, position), True


@contextmanager
def visit_images(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    batch_size: int,
    device: str | torch.device,
    seed: int,
    fields: Mapping[str, Any],
) -> Iterator[tuple[Pair, Iterable[tuple[Tensor, dict[str, Tensor]]]]]:
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
    with _quiet(pair, place, seed):
        # copies: a program may write into its batch
        yield (
            pair,
            (
                (pair.cast(images).clone(), {name: value.clone() for name, value in named.items()})
                for images, named in source.in_order()
            ),
        )


@contextmanager
def _quiet(pair: Pair, place: torch.device, seed: int) -> Iterator[None]:
    """Eval mode, no gradients, random numbers of our own."""
    with (
        pair.active(training=False, may_create=False),
        torch.random.fork_rng([place] if place.type == "cuda" else []),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class _Generation:
    """A model without images: how to run it, and what its sites are."""

    pair: Pair
    blank: Tensor  # (11, *event_shape) zeros; or the images that the model is conditioned on
    conditioned: bool
    fields: dict[str, Tensor]
    latents: dict[str, torch.Size]  # each site's shape for one image
    observed: tuple[str, ...]
    at: Geometry  # with the name of each site's data plate
    dims: dict[str, int]  # and its dimension

    def check(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values in the model's dtype and on its device; a ``UserError`` where they are not of
        its latents.
        """
        for name, value in values.items():
            if name not in self.latents:
                raise UserError(did_you_mean("latent site", name, self.latents))
            if value.shape[1:] != self.latents[name]:
                raise UserError(
                    f"values of site {name!r} have shape {tuple(value.shape)}: "
                    f"expected (N, *{tuple(self.latents[name])})"
                )
        return {
            n: (v if not v.is_floating_point() else self.pair.cast(v)).to(self.blank.device)
            for n, v in values.items()
        }

    def run(self, rows: slice, given: Mapping[str, Tensor], mean: bool) -> dict[str, Tensor]:
        """One batch of images: means of p(x | z), or draws."""
        size = rows.stop - rows.start
        named = {name: value[rows] for name, value in self.fields.items()}
        images = self.blank[rows] if self.conditioned else blanks(self.blank, size)
        with _Given({name: value[rows] for name, value in given.items()}, self.dims):
            trace = plain_draw(
                lambda x, given: _generate(self.pair, size, x, dict(given)), images, named
            )
        nodes = {name: trace.nodes[name] for name in self.observed}
        return {
            n: _rows_first(mean_of(node["fn"]) if mean else node["value"], node, self.at)
            for n, node in nodes.items()
        }


@contextmanager
def _generation(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    like: Tensor | None,
    device: str | torch.device,
    seed: int,
    fields: dict[str, Tensor],
    x: Tensor | None = None,
) -> Iterator[_Generation]:
    """The model, ready to run, its sites known from a trial run.

    Args:
        x: images that it is conditioned on; else it is refused where it reads them.
    """
    place = find_device(device)
    pair = (
        Pair.of(model, guide) if guide is not None else Pair(model, _no_guide, _FittedElsewhere())
    )
    pair.to(place)
    fields = {name: value.to(place) for name, value in fields.items()}
    few = {
        name: value[torch.arange(PROBE_IMAGES, device=place) % len(value)]
        for name, value in fields.items()
    }
    with pair.active(may_create=False):
        blank = _blank(pair, like if x is None else x, few, place)
        with pair.probing():  # meets modules that closures hide
            if x is not None:
                images = pair.cast(x.to(place))
                trace = plain_draw(pair.model, probe_rows(images, PROBE_IMAGES), few)
            elif _takes_size(pair):
                trace = plain_draw(pair.model, blank, few)
            else:
                trace = refuse_unconditioned(
                    pair.model,
                    blank,
                    probe_rows(pair.cast((blank if like is None else like).to(place)), len(blank)),
                    few,
                    lambda images: plain_draw(pair.model, images, few),
                )
    observed = tuple(name for name, node in sample_nodes(trace) if node["is_observed"])
    if not observed:
        raise UserError("the model observes nothing: give one of its sample statements `obs=x`")
    frames = {name: _data_plate(name, node) for name, node in sample_nodes(trace)}
    at = Geometry(frozenset(frame.name for frame in frames.values()))
    latents = {
        n: _rows_first(node["value"], node, at).shape[1:] for n, node in latent_nodes(trace).items()
    }
    with _quiet(pair, place, seed):
        yield _Generation(
            pair,
            blank if x is None else images,
            x is not None,
            fields,
            latents,
            observed,
            at,
            {name: frame.dim for name, frame in frames.items()},
        )


def _blank(
    pair: Pair, like: Tensor | None, fields: dict[str, Tensor], place: torch.device
) -> Tensor:
    """Images of zeros for the trial run: shaped as ``like``, else as what the model generates."""
    if like is not None:
        if like.dim() < 2:
            raise UserError(
                f"like has shape {tuple(like.shape)}: expected images, (N, *event_shape)"
            )
        return pair.cast(like.new_zeros(PROBE_IMAGES, *like.shape[1:], device=place))
    if not _takes_size(pair):
        raise UserError(
            "the model takes no `size`, so the shape of its images is not known: give like=x, "
            "with a few images x, or write the model so that model(None, size=n) generates n "
            "images"
        )
    with pair.probing():
        images = _generate(pair, PROBE_IMAGES, torch.empty(0), fields)
    if not isinstance(images, Tensor) or images.dim() < 2 or len(images) != PROBE_IMAGES:
        raise UserError(
            "model(None, size=n) does not return n images: write the model so that it returns "
            "them, or give like=x, with a few images x"
        )
    return torch.zeros_like(images)


def _generate(pair: Pair, size: int, images: Tensor, fields: dict[str, Tensor]) -> Any:
    if _takes_size(pair):
        return pair.model.call(None, size=size, **arguments(pair.model.select(fields)))
    return poutine.uncondition(pair.model)(images, fields)


def blanks(blank: Tensor, size: int) -> Tensor:
    """As many images of zeros."""
    return blank[:1].expand(size, *blank.shape[1:])


def probe_rows(images: Tensor, size: int) -> Tensor:
    """The first images, again and again where there are fewer."""
    return images[torch.arange(size, device=images.device) % len(images)]


def _conditions(x: Any, size: int) -> Tensor | None:
    if x is None:
        return None
    images = as_images(x)
    if len(images) != size:
        raise UserError(f"x holds {len(images)} images: expected {size}, one for each new image")
    return images


def _takes_size(pair: Pair) -> bool:
    return pair.model.wants("size")


def _no_guide(x: Tensor) -> None:
    """Stands in where a model is run alone."""


class _FittedElsewhere(ParameterStore):
    """The empty store of a model without its guide: it must not invent parameters that were fitted
    in a pair.
    """

    def _create(self, name: str, *_: Any) -> None:
        raise UserError(
            f"pyro.param({name!r}) was fitted together with a guide: give that guide as well, "
            "guide=…"
        )


def _data_plate(name: str, node: Any) -> Any:
    """The plate of images in the trial run: the one at −1 where that is one, as it should be."""
    frames = [
        f for f in node["cond_indep_stack"] if f.vectorized and plate_size(node, f) == PROBE_IMAGES
    ]
    if not frames:
        raise UserError(
            f"site {name!r} of the model is outside the data plate: sample it inside pyro.plate"
        )
    return max(frames, key=lambda frame: frame.dim == -1)


def _rows_first(value: Tensor, node: Any, at: Geometry) -> Tensor:
    """``(N, *other plates, *event)`` on the CPU, of a value that has the batch dimensions of the
    site.
    """
    return rows_first(value, node["fn"], at.frame(node).dim).cpu()


def _slices(size: int, batch_size: int) -> list[slice]:
    check_count("batch_size", batch_size)
    return [slice(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]


def _join(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
