"""Draws of the latents with the images as the first dimension, for any plates and sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import pi, prod
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.errors import UserError
from pyro_vae.pair.layouts import draw_alone
from pyro_vae.pair.nodes import Fields
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair
from pyro_vae.tensors import slices

ROWS = 4000
"""Rows (draws times images) of one run: small enough for the memory of any machine."""


class Given(Messenger):
    """Latent sample statements return these values: as they are; laid along the data plate of these
    ``dims``, ``(N, *other plates, *event)``; with a ``particle_dim`` too, entered outside the
    plates, ``(K, B or 1, *other plates, *event)``.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        dims: Mapping[str, int] | None = None,
        particle_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.values, self.dims, self.particle_dim = values, dims, particle_dim

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) not in self.values or msg["done"]:
            return
        value, fn = self.values[name], msg["fn"]
        num_batch, event = len(fn.batch_shape), value.shape[value.dim() - fn.event_dim :]
        if self.dims is not None and self.particle_dim is None:
            value = value.movedim(0, value.dim() - fn.event_dim + self.dims[name])
        elif self.dims is not None and self.particle_dim is not None:
            places = num_batch + self.particle_dim, num_batch + self.dims[name]
            others = [size for dim, size in enumerate(fn.batch_shape) if dim not in places]
            value = value.reshape(*value.shape[:2], *others, *event).movedim((0, 1), places)
            value = value.expand(*fn.batch_shape, *event)
        msg["value"], msg["done"] = value, True


def by_draw(value: Tensor, num_draws: int) -> Tensor:
    """``(K·B, …)``, draw by draw, as ``(K, B, …)``."""
    return value.reshape(num_draws, len(value) // num_draws, *value.shape[1:])


def chunks(num_draws: int, num_images: int) -> Iterator[int]:
    """Numbers of draws that add up to ``num_draws``, each of no more than `ROWS` rows."""
    for part in slices(num_draws, max(1, ROWS // num_images)):
        yield part.stop - part.start


def weighted_draws(
    pair: Pair, x: Tensor, fields: Fields, num_draws: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log weights ``(K, B)`` in float64, and the guide's draws they belong to, ``(K, B, …)`` by
    site.
    """
    weights, values = [], []
    for k in chunks(num_draws, len(x)):
        terms = pair.run(x, fields, k, layout="repeat")
        weights.append(terms.log_weights().reshape(k, len(x)).double())
        values.append({name: by_draw(site.rows(), k) for name, site in terms.guide.items()})
    return torch.cat(weights), join(values)


def guide_draws(pair: Pair, x: Tensor, fields: Fields, num_draws: int) -> dict[str, Tensor]:
    """Draws of q(z | x), ``(K, B, …)`` by site."""
    return join(_latents(pair, pair.guide, x, fields, k) for k in chunks(num_draws, len(x)))


def prior_draws(pair: Pair, x: Tensor, fields: Fields, num_draws: int) -> dict[str, Tensor]:
    """Draws of p(z), given each image's fields, ``(K, B, …)`` by site."""
    return join(_latents(pair, pair.model, x, fields, k) for k in chunks(num_draws, len(x)))


def _latents(pair: Pair, program: Program, x: Tensor, fields: Fields, k: int) -> dict[str, Tensor]:
    at = pair.structure(x, fields).geometry
    nodes = draw_alone(program, x, fields, k, at, on_rows=True)
    return {
        name: by_draw(at.rows(node), k) for name, node in nodes.items() if not node["is_observed"]
    }


def join(parts: Iterable[Mapping[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """Batches of tensors by name, as one of each name."""
    listed = list(parts)
    return {name: torch.cat([part[name] for part in listed], dim) for name in listed[0]}


def whole_images(sites: Mapping[str, Tensor], event_shape: tuple[int, ...]) -> Tensor:
    """The first site that has whole images, in the images' own shape, ``(N, *event_shape)``.

    Raises:
        UserError: no site has as many numbers as an image.
    """
    for value in sites.values():
        if value[0].numel() == prod(event_shape):
            return value.reshape(len(value), *event_shape)
    raise UserError(
        f"none of the observed sites ({', '.join(sites)}) has the images' shape "
        f"{tuple(event_shape)}"
    )


def steps_as_one(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sites of a sequence, ``x_1``, ``x_2``, …, as one tensor called ``x``, ``(N, T, *event)``;
    all others, and steps of different shapes, as they are.
    """
    steps: dict[str, dict[int, str]] = {}
    for name in found:
        stem, _, number = name.rpartition("_")
        if stem not in found and number.isdecimal():
            steps.setdefault(stem, {})[int(number)] = name
    joined, left = {}, dict(found)
    for stem, names in steps.items():
        if len(names) > 1 and len({found[name].shape for name in names.values()}) == 1:
            joined[stem] = torch.stack([left.pop(names[t]) for t in sorted(names)], 1)
    return joined | left


def is_real(fn: Any) -> bool:
    """Whether a distribution lies on all of R, or of R^D."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


def is_periodic(fn: Any, value: Tensor) -> bool:
    """Whether a density repeats itself at 2π, as a circular one does, though its support says the
    real line.
    """
    if not value.is_floating_point() or fn.support.is_discrete:
        return False
    try:
        here, further = fn.log_prob(value), fn.log_prob(value + 2 * pi)
    except (ValueError, RuntimeError, NotImplementedError, KeyError):  # no density there
        return False
    return torch.allclose(here, further, rtol=1e-3, atol=1e-3)
