"""What a model makes of latents: images, for values of the latents or for draws of the prior.

Everything runs in eval mode, without gradients, in batches, and leaves the caller's random state as
it was. Results are on the CPU, by site name, with one row an image: ``(N, *event)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.analysis.conditions import refuse_unconditioned
from pyro_vae.analysis.encode import mean_of
from pyro_vae.analysis.latents import Given, join, steps_as_one
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.fields import arguments, as_fields
from pyro_vae.pair.geometry import Geometry
from pyro_vae.pair.nodes import latent_nodes, plain_draw, plate_size, sample_nodes
from pyro_vae.pair.parameter_store import ParameterStore
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.tensors import as_images, slices
from pyro_vae.validation import check_count

PROBE_IMAGES = 11
"""Images of the trial run: a number that no other plate is likely to have, as the data plate is
known by its size.
"""


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
    *event)``; sites of a sequence, ``x_1``, ``x_2``, …, as one tensor ``x``, ``(size, T, *event)``.

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
    made = Generation(model, guide, size, like, device, fields, x)
    return made.batches({}, batch_size, mean, seed)


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
    made = Generation(model, guide, size, like, device, fields, x)
    return made.batches(values, batch_size, mean, seed)


class Generation:
    """A model without images: how to run it, and what its sites are, by a trial run.

    Args:
        model, guide, like, device: as of `sample`.
        size: how many images are to be made.
        fields: what the model is conditioned on, ``size`` rows.
        x: images that it is conditioned on; else it is refused where it reads them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        size: int,
        like: Tensor | None,
        device: str | torch.device,
        fields: Mapping[str, Any],
        x: Any = None,
    ) -> None:
        self.size, self.place, self.conditioned = size, find_device(device), x is not None
        pair = Pair.of(model, guide) if guide else Pair(model, _no_guide, _FittedElsewhere())
        self.pair = pair.to(self.place)
        self.takes_size = pair.model.wants("size")
        self.fields = {n: value.to(self.place) for n, value in as_fields(fields, size).items()}
        rows = torch.arange(PROBE_IMAGES, device=self.place) % size
        few = {name: value[rows] for name, value in self.fields.items()}
        with pair.active(may_create=False):
            # zeros, or the images that the model is conditioned on: (N, *event_shape)
            self.blank = pair.cast(self._conditions(x)) if x is not None else self._zeros(like, few)
            with pair.probing():  # meets modules that closures hide
                images = self.blank[rows]
                if self.conditioned or self.takes_size:
                    trace = plain_draw(pair.model, images, few)
                else:
                    given = pair.cast((self.blank if like is None else like).to(self.place))
                    others = given[torch.arange(PROBE_IMAGES, device=self.place) % len(given)]
                    trace = refuse_unconditioned(pair.model, images, others, few)
        nodes = dict(sample_nodes(trace))
        self.observed = tuple(name for name, node in nodes.items() if node["is_observed"])
        if not self.observed:
            raise UserError("the model observes nothing: give one of its sample statements `obs=x`")
        frames = {name: _data_plate(name, node) for name, node in nodes.items()}
        self.at = Geometry(frozenset(frame.name for frame in frames.values()))
        self.dims = {name: frame.dim for name, frame in frames.items()}  # of the data plate
        latents = latent_nodes(trace)
        self.latents = {n: self.at.rows(node).shape[1:] for n, node in latents.items()}

    def batches(
        self, values: Mapping[str, Tensor], batch_size: int, mean: bool, seed: int
    ) -> dict[str, Tensor]:
        """Means of p(x | z), or draws, of all images, at these values of latents."""
        given = self._check(values)
        check_count("batch_size", batch_size)
        with self.pair.measuring(self.place, seed):
            parts = (self._run(rows, given, mean) for rows in slices(self.size, batch_size))
            return steps_as_one(join(parts))

    def generate(self, images: Tensor, fields: Mapping[str, Tensor]) -> Any:
        """The model's own result for as many images, which it draws."""
        if self.takes_size:
            given = arguments(self.pair.model.select(fields))
            return self.pair.model.call(None, size=len(images), **given)
        return poutine.uncondition(self.pair.model)(images, fields)

    def blanks(self, size: int) -> Tensor:
        """As many images of zeros."""
        return self.blank[:1].expand(size, *self.blank.shape[1:])

    def _run(self, rows: slice, given: Mapping[str, Tensor], mean: bool) -> dict[str, Tensor]:
        named = {name: value[rows] for name, value in self.fields.items()}
        images = self.blank[rows] if self.conditioned else self.blanks(rows.stop - rows.start)
        with Given({name: value[rows] for name, value in given.items()}, self.dims):
            nodes = plain_draw(self.generate, images, named).nodes
        return {
            n: self.at.rows(nodes[n], mean_of(nodes[n]["fn"]) if mean else None).cpu()
            for n in self.observed
        }

    def _check(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
            n: (v if not v.is_floating_point() else self.pair.cast(v)).to(self.place)
            for n, v in values.items()
        }

    def _conditions(self, x: Any) -> Tensor:
        images = as_images(x)
        if len(images) != self.size:
            raise UserError(
                f"x holds {len(images)} images: expected {self.size}, one for each to be made"
            )
        return images.to(self.place)

    def _zeros(self, like: Tensor | None, few: Mapping[str, Tensor]) -> Tensor:
        """Images for the trial run: shaped as ``like``, else as what the model generates."""
        if like is not None:
            if like.dim() < 2:
                raise UserError(
                    f"like has shape {tuple(like.shape)}: expected images, (N, *event_shape)"
                )
            zeros = like.new_zeros(PROBE_IMAGES, *like.shape[1:], device=self.place)
            return self.pair.cast(zeros)
        if not self.takes_size:
            raise UserError(
                "the model takes no `size`, and can't tell what its images look like: give like=x, "
                "with a few images x, or write the model so that model(None, size=n) generates n "
                "images"
            )
        with self.pair.probing():
            images = self.generate(torch.empty(PROBE_IMAGES), few)
        if not isinstance(images, Tensor) or images.dim() < 2 or len(images) != PROBE_IMAGES:
            raise UserError(
                "model(None, size=n) does not return its n images: let it return them, or give "
                "like=x, with a few images x"
            )
        return torch.zeros_like(images)


def _no_guide(x: Tensor) -> None:
    """Stands in where a model is run alone."""


class _FittedElsewhere(ParameterStore):
    """The empty store of a model without its guide: it must not invent parameters that were fitted
    in a pair.
    """

    def _create(self, name: str, *_: Any) -> None:
        raise UserError(
            f"pyro.param({name!r}) belongs to the pair that the model was fitted in: give that "
            "guide as well, guide=…"
        )


def _data_plate(name: str, node: Any) -> Any:
    """The plate of images in the trial run: the one at −1 where that is one, as it should be."""
    frames = [
        f for f in node["cond_indep_stack"] if f.vectorized and plate_size(node, f) == PROBE_IMAGES
    ]
    if not frames:
        raise UserError(
            f"site {name!r} of the model stands outside the data plate: sample it inside pyro.plate"
        )
    return max(frames, key=lambda frame: frame.dim == -1)
