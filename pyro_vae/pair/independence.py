"""Whether the images of a batch are scored independently, so that log p(x) of one image is defined
at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import first_line
from pyro_vae.pair.layouts import Call, Fields, Geometry, SiteTerms, latent_nodes, plain_draw, run
from pyro_vae.pair.runtime import Pair, close, probe

NUM_IMAGES = 5
OTHERS = (0, 1, 1, 1, 1), (3, 3, 3, 3, 4)
"""Rows of five images: one of them keeps its place, and all others are another image."""


class Independence(NamedTuple):
    """What was found; both are empty where every image's densities are functions of that image
    alone.
    """

    site: str = (
        ""  # at which the density of an image depends on the other images of its batch, in words
    )
    unchecked: str = ""  # why that can't be told


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
        drawn = plain_draw(pair.guide, *_rows(*images, range(NUM_IMAGES)))

        def terms(rows: Sequence[int], seed: int = 0) -> SiteTerms:
            torch.manual_seed(seed)
            values = _at_rows(drawn, rows, at, scored=not structure.own_draws_only)

            def replayed(guide: Call, x: Tensor, fields: Fields) -> poutine.Trace:
                return (
                    values
                    if structure.own_draws_only
                    else plain_draw(poutine.replay(guide, trace=values), x, fields)
                )

            return run(
                pair.model,
                pair.guide,
                *_rows(*images, rows),
                1,
                replace(at, draw=replayed),
                "repeat",
            )

        alone = terms(range(NUM_IMAGES))
        if _differs(alone, terms(range(NUM_IMAGES), seed=1), range(NUM_IMAGES)):
            return Independence(
                unchecked="the programs draw random numbers outside of sample sites"
            )
        try:
            return Independence(
                next(filter(None, (_differs(alone, terms(rows), rows) for rows in OTHERS)), "")
            )
        except Exception as error:  # whatever a program raises on rows that don't belong together
            return Independence(
                unchecked=f"the programs fail on a batch of other rows ({first_line(error)})"
            )


def _rows(x: Tensor, fields: Fields, rows: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of its own: a program may write into it."""
    at = torch.tensor(rows)
    return x[at.to(x.device)], {name: value[at.to(value.device)] for name, value in fields.items()}


def _at_rows(
    drawn: poutine.Trace, rows: Sequence[int], at: Geometry, *, scored: bool
) -> poutine.Trace:
    """The same draws for a batch of these rows; without a density where they can't be scored again."""
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


def _differs(terms: SiteTerms, others: SiteTerms, rows: Sequence[int]) -> str:
    """The first site whose densities, taken at ``rows``, are not the others'."""
    for role, before, after in (
        ("guide", terms.guide, others.guide),
        ("model", terms.prior | terms.observed, others.prior | others.observed),
    ):
        for name, site in before.items():
            if not close(after[name].log_prob, site.log_prob[:, list(rows)]):
                return f"{name!r} of the {role}"
    return ""
