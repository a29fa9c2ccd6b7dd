"""Comparison of runs of a pair: the same log densities at all sites, the cheapest layout, and
whether the images of a batch are independent, so that log p(x) of one image is defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import first_line
from pyro_vae.pair.layouts import LAYOUTS, run
from pyro_vae.pair.nodes import Call, Fields, copies, latent_nodes, plain_draw, taken
from pyro_vae.pair.structure import Geometry
from pyro_vae.pair.terms import SiteTerms

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair

PROBE_IMAGES, PROBE_DRAWS = 5, 7


def probe(x: Tensor, fields: Fields, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Copies of the first ``size`` images and fields, of the first ones again where there are
    fewer.
    """
    return taken(x, fields, torch.arange(size) % len(x))


def differing(
    terms: SiteTerms, others: SiteTerms, rows: Sequence[int] | slice = slice(None)
) -> str:
    """The first site whose log densities, at the images ``rows``, are not the others' up to
    rounding.
    """
    for role, before, after in (
        ("guide", terms.guide, others.guide),
        ("model", terms.prior | terms.observed, others.prior | others.observed),
    ):
        for name, site in before.items():
            if not close(after[name].log_prob, site.log_prob[:, rows]):
                return f"{name!r} of the {role}"
    return ""


def close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(b.dtype).eps
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def cheapest_layout(pair: Pair, x: Tensor, fields: Fields, values: dict[str, int]) -> str:
    """The first of `LAYOUTS` whose densities, at a few images and draws, are those of repetition;
    ``values`` are those of enumerated sites.
    """
    at = replace(pair.structure(x, fields).geometry, enumerated=values)

    def terms(layout: str) -> SiteTerms:
        torch.manual_seed(0)
        few = probe(x, fields, PROBE_IMAGES)
        return run(pair.model, pair.guide, *few, PROBE_DRAWS, at, layout)

    with pair.probing():
        reference = terms("repeat")
        # merging rows takes draws without values
        for layout in LAYOUTS[:-1] if not values else LAYOUTS[:1]:
            try:
                if not differing(reference, terms(layout)):
                    return layout
            except Exception:  # a layout that a user's program can't run under is not for it
                continue
    return "repeat"


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
