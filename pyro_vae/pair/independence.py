"""A check whether the images of a batch are independent, so that log p(x) of one image is defined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import first_line
from pyro_vae.pair.comparison import differing, probe
from pyro_vae.pair.geometry import Geometry
from pyro_vae.pair.layouts import run
from pyro_vae.pair.nodes import Call, Fields, copies, latent_nodes, plain_draw, taken
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.terms import SiteTerms

NUM_IMAGES = 5
EVERY, OTHERS = (0, 1, 2, 3, 4), ((0, 1, 1, 1, 1), (3, 3, 3, 3, 4))
"""Rows of five images; in the others one of them keeps its place, and all others are another image.
"""


class Independence(NamedTuple):
    """What was found; both are empty where every image's densities are functions of that image
    alone.
    """

    site: str = (
        ""  # at which the density of an image depends on the other images of its batch, in words
    )
    unchecked: str = ""  # why that can't be known


def independence(pair: Pair, x: Tensor, fields: Fields) -> Independence:
    """Whether the densities of an image depend on the other images of its batch, and at which site.

    A batch of other rows must have the same densities in that order, every image with its own draws
    of the latents: in a batch of five, four are replaced, in both directions. Modules are in eval
    mode.

    Args:
        x: images, ``(N, *event_shape)``; the first five are looked at.
        fields: with one row an image.
    """
    structure = pair.structure(x, fields)
    at, images = structure.geometry, probe(x, fields, NUM_IMAGES)
    with pair.probing():
        drawn = plain_draw(pair.guide, *copies(*images))

        def terms(rows: Sequence[int], seed: int = 0) -> SiteTerms:
            torch.manual_seed(seed)
            values = _at_rows(drawn, rows, at, scored=not structure.own_draws_only)

            def replayed(guide: Call, x: Tensor, fields: Fields) -> poutine.Trace:
                return (
                    values
                    if structure.own_draws_only
                    else plain_draw(poutine.replay(guide, trace=values), x, fields)
                )

            batch = taken(*images, torch.tensor(rows))
            return run(pair.model, pair.guide, *batch, 1, replace(at, draw=replayed), "repeat")

        alone = terms(EVERY)
        if differing(alone, terms(EVERY, seed=1), EVERY):
            return Independence(
                unchecked="the programs draw random numbers outside of sample sites"
            )
        try:
            return Independence(
                next(filter(None, (differing(alone, terms(rows), rows) for rows in OTHERS)), "")
            )
        except Exception as error:  # whatever a program raises on rows that don't belong together
            return Independence(
                unchecked=f"the programs fail on a batch of other rows ({first_line(error)})"
            )


def _at_rows(
    drawn: poutine.Trace, rows: Sequence[int], at: Geometry, *, scored: bool
) -> poutine.Trace:
    """The same draws for a batch of these rows; no density if they can't be scored again."""
    moved = drawn.copy()
    for name, node in latent_nodes(drawn).items():
        value = node["value"]
        image = value.dim() - node["fn"].event_dim + at.frame(node).dim
        value = value.index_select(image, torch.tensor(rows, device=value.device))
        none: dict[str, Any] = (
            {} if scored else {"unscaled_log_prob": torch.zeros(node["fn"].batch_shape)}
        )
        moved.nodes[name] = {**node, "value": value, **none}
    return moved
