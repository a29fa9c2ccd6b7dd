"""Comparison of runs of a pair: the same log densities at all sites, and the cheapest layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair

from pyro_vae.pair.layouts import LAYOUTS, run
from pyro_vae.pair.nodes import Fields, taken
from pyro_vae.pair.terms import SiteTerms

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
