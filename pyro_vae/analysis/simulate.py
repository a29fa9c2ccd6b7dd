"""Images that the model itself generates, with the latents that they came from: exact draws of p(z
| x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.analysis.encode import _generate, _generation, blanks
from pyro_vae.errors import UserError
from pyro_vae.pair.layouts import Geometry, rows_first


@dataclass(frozen=True)
class Simulated:
    """(x, z) ~ p(x, z), the images first."""

    x: Tensor  # (N, *event_shape), as the programs take it
    fields: dict[str, Tensor]  # (N, …), with ``index``
    latents: dict[str, Tensor]  # (N, *other plates, *event) by site

    def rows(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """These images, their fields and their latents."""
        fields, latents = (
            {n: v[rows] for n, v in part.items()} for part in (self.fields, self.latents)
        )
        return self.x[rows], fields, latents


def simulate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    size: int,
    like: Tensor | None,
    device: torch.device,
    seed: int,
    fields: Mapping[str, Tensor],
) -> Simulated:
    """``size`` images of the model as it was fitted with ``guide``.

    Raises:
        UserError: the model takes no ``size`` and there is no ``like``; it observes anything but x
            alone.
    """
    with _generation(model, guide, like, device, seed, dict(fields)) as generation:
        pair, blank, named = generation.pair, generation.blank, generation.fields
        named.setdefault("index", torch.arange(size, device=device))
        trace = poutine.trace(lambda: _generate(pair, size, blanks(blank, size), named)).get_trace()
        if len(generation.observed) != 1:
            raise UserError(
                f"the model observes {', '.join(generation.observed)}: BDMC can only simulate "
                "images of a model that observes nothing but x"
            )
        name = generation.observed[0]
        drawn, shape = trace.nodes[name]["value"], torch.Size((size, *blank.shape[1:]))
        if drawn.numel() == shape.numel():
            # where x lies along other plates, its images come first; that this is so is checked
            # next
            x = pair.cast(_rows_first(trace.nodes[name], generation.at).reshape(shape))
            again = poutine.trace(poutine.replay(pair.model, trace=trace)).get_trace(x, named)
            if torch.equal(again.nodes[name]["value"], drawn):
                latents = {
                    n: _rows_first(trace.nodes[n], generation.at) for n in generation.latents
                }
                return Simulated(x, named, latents)
    raise UserError(
        f"the model's site {name!r} observes a function of x, not x itself (its values have "
        f"shape {tuple(drawn.shape)}, images {tuple(shape)}): BDMC can't make images from its "
        "draws there"
    )


def _rows_first(node: Any, at: Geometry) -> Tensor:
    return rows_first(node["value"], node["fn"], at.frame(node).dim)
