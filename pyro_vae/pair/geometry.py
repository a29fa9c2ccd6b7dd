"""How a pair is run: the dimensions of its plates, its draws, its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.pair.nodes import (
    Draw,
    Score,
    plain_draw,
    plain_score,
)
from pyro_vae.pair.terms import rows_first


@dataclass(frozen=True)
class Geometry:
    """How to run a pair: the names of its data plates, the first free dimension, how the guide is
    run and sites scored.
    """

    data_plates: frozenset[str] = frozenset({"data"})
    particle_dim: int = -2  # left of all plates
    score: Score = plain_score
    draw: Draw = plain_draw
    summed: tuple[str, ...] = ()  # the model's discrete sites that the guide does not have
    # the guide's sites to run at all their values, each with how many it has
    enumerated: Mapping[str, int] = field(default_factory=dict)
    in_place: bool = (
        False  # whether a program writes into its batch, so that each run needs one of its own
    )

    def frame(self, node: Any) -> Any:
        """The data plate of a site, one of its own ``cond_indep_stack``."""
        for frame in node["cond_indep_stack"]:
            if frame.name in self.data_plates:
                return frame
        raise UserError(
            f"site {node['name']!r} is outside the data plate: sample it inside `with "
            "pyro.plate('data', x.shape[0]):`"
        )

    def rows(self, node: Any, value: Tensor | None = None) -> Tensor:
        """`Site.rows` of a site that is not scored."""
        value = node["value"] if value is None else value
        return rows_first(value, node["fn"], self.frame(node).dim)
