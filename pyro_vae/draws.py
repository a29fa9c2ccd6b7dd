"""Draws of the latents for each image, the images first: whatever plates, sites and layouts a pair has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.densities import Fields, Site, sample_nodes
from pyro_vae.pair import Pair

ROWS = 4000
"""Rows (draws times images) of one run: small enough for the memory of any machine."""


def rows_first(value: Tensor, fn: Any, data_dim: int) -> Tensor:
    """A site's value with the data plate's dimension in front: ``(rows, *other plates, *event)``."""
    return value.movedim(len(fn.batch_shape) + data_dim, 0)


def by_draw(value: Tensor, num_draws: int) -> Tensor:
    """``(K·B, …)``, draw by draw, as ``(K, B, …)``."""
    return value.reshape(num_draws, len(value) // num_draws, *value.shape[1:])


def repeated(x: Tensor, fields: Fields, times: int) -> tuple[Tensor, dict[str, Tensor]]:
    """All images, then all again, ``times`` times: ``(K·B, …)``."""
    return _repeat(x, times), {name: _repeat(value, times) for name, value in fields.items()}


def chunks(num_draws: int, num_images: int) -> Iterator[int]:
    """Numbers of draws that add up to ``num_draws``, each of no more than `ROWS` rows."""
    size = max(1, ROWS // num_images)
    for start in range(0, num_draws, size):
        yield min(size, num_draws - start)


def weighted_draws(pair: Pair, x: Tensor, fields: Fields, num_draws: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log weights ``(K, B)`` in float64, and the guide's draws they belong to, ``(K, B, …)`` by site."""
    dim = pair.structure(x, fields).geometry.guide_dim
    weights, values = [], []
    for k in chunks(num_draws, len(x)):
        terms = pair.run(x, fields, k, layout="repeat")
        weights.append(terms.log_weights().reshape(k, len(x)).double())
        values.append({name: _of_site(site, dim, k) for name, site in terms.guide.items()})
    return torch.cat(weights), _join(values)


def guide_draws(pair: Pair, x: Tensor, fields: Fields, num_draws: int) -> dict[str, Tensor]:
    """Draws of q(z | x), ``(K, B, …)`` by site."""
    dim = pair.structure(x, fields).geometry.guide_dim
    return _join(_latents(pair, pair.guide, x, fields, dim, k) for k in chunks(num_draws, len(x)))


def prior_draws(pair: Pair, x: Tensor, fields: Fields, num_draws: int) -> dict[str, Tensor]:
    """Draws of p(z), given each image's fields, ``(K, B, …)`` by site."""
    dim = pair.structure(x, fields).geometry.model_dim
    return _join(_latents(pair, pair.model, x, fields, dim, k) for k in chunks(num_draws, len(x)))


def _latents(pair: Pair, program: Any, x: Tensor, fields: Fields, dim: int, k: int) -> dict[str, Tensor]:
    trace = poutine.trace(program).get_trace(*repeated(x, fields, k))
    found = {name: node for name, node in sample_nodes(trace) if not node["is_observed"]}
    return {name: by_draw(rows_first(node["value"], node["fn"], dim), k) for name, node in found.items()}


def _of_site(site: Site, dim: int, k: int) -> Tensor:
    return by_draw(rows_first(site.value, site.fn, dim), k)


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.expand(times, *x.shape).reshape(times * len(x), *x.shape[1:])


def _join(parts: Iterator[dict[str, Tensor]] | list[dict[str, Tensor]]) -> dict[str, Tensor]:
    listed: list[Mapping[str, Tensor]] = list(parts)
    return {name: torch.cat([part[name] for part in listed]) for name in listed[0]}
