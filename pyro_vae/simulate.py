"""Images that the model itself generates, with the latents that they came from: exact draws of p(z | x)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.densities import sample_nodes
from pyro_vae.errors import UserError
from pyro_vae.pair import Pair
from pyro_vae.representation import _blank, _generate, _takes_size


@dataclass(frozen=True)
class Simulated:
    """(x, z) ~ p(x, z)."""

    x: Tensor  # (N, *event_shape), as the programs take it
    latents: dict[str, Tensor]  # by site, the data plate where the model has it
    data_dims: dict[str, int]  # that plate's place in each latent's tensor

    def tile(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """These rows of the images and of the latents."""
        chosen = {name: value.index_select(self.data_dims[name], rows) for name, value in self.latents.items()}
        return self.x[rows], chosen


def simulate(pair: Pair, size: int, like: Tensor | None, fields: Mapping[str, Tensor], place: torch.device) -> Simulated:
    """``size`` images of the model, inside ``pair.active``.

    Raises:
        UserError: a model that takes no ``size`` and no ``like`` is given; one that observes something else than x.
    """
    few = {name: value[torch.arange(11, device=place) % size] for name, value in fields.items()}
    blank = _blank(pair, like, few, place)
    trace = poutine.trace(lambda: _generate(pair, size, blank, dict(fields))).get_trace()
    nodes = dict(sample_nodes(trace))
    # `uncondition` leaves the mark of an observed site on what it samples
    observed = {n: node for n, node in nodes.items() if node["is_observed"] or node["infer"].get("was_observed")}
    if not _takes_size(pair):
        shape = (size, *blank.shape[1:])
    else:
        shape = (size, *next(iter(observed.values()))["fn"].event_shape) if observed else (size,)
    latents = {n: node for n, node in nodes.items() if n not in observed}
    if len(observed) != 1:
        raise UserError(
            f"the model observes {len(observed)} sites ({', '.join(observed) or 'none'}): BDMC simulates images for a model that "
            "observes x alone"
        )
    (site,) = observed.values()
    if site["value"].numel() != torch.Size(shape).numel():
        raise UserError(
            f"the model's observed site has values of shape {tuple(site['value'].shape)}, which are no images of shape {shape}: "
            "BDMC needs a model that observes x itself"
        )
    x = pair.cast(site["value"].reshape(shape))
    _check_observes(pair, x, fields, site["value"])
    dims = {name: len(node["fn"].batch_shape) - 1 for name, node in latents.items()}
    return Simulated(x, {name: node["value"] for name, node in latents.items()}, dims)
