"""The structure of a pair, as its dry run found it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.fields import Part, made_of
from pyro_vae.pair.nodes import (
    Draw,
    Fields,
    Score,
    plain_draw,
    plain_score,
)
from pyro_vae.pair.parameter_store import ParameterStore
from pyro_vae.pair.program import handled, scales_ignored
from pyro_vae.pair.terms import rows_first

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair


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


NO_CLOSED_FORM = "no closed form is registered for its two distributions"
"""Why the KL of a latent is sampled, where its order of sampling would allow a closed form."""


@dataclass(frozen=True)
class Structure:
    """Sites, plates and closed forms of a pair, as a dry run on a few images showed."""

    observed: tuple[str, ...]
    latents: tuple[str, ...]  # in the model's order
    geometry: Geometry
    plates: tuple[str, str]  # the data plate's name in the model and in the guide
    analytic: tuple[str, ...]  # latents whose KL has a closed form that is right here
    sampled: dict[str, str]  # the other latents, and why their KL is sampled
    not_reparameterized: tuple[str, ...]
    point_masses: tuple[str, ...]
    subsampling: bool
    # latents that the guide scores at its own last draw alone, as a planar flow does
    own_draws_only: tuple[str, ...] = ()
    # why log q of a given z can't be taken with the guide's parameters kept constant, if it can't
    not_held: str = ""
    # what sites of the guide ask of their objective that is not served here, and which one of
    # Pyro's serves it
    asked: dict[str, str] = field(default_factory=dict)
    # sites of the guide that ask to be enumerated, and how many values each has
    enumerated: dict[str, int] = field(default_factory=dict)
    # why Pyro's own objective trains the pair, if it does
    by_pyro: str = ""
    # why log p(x) of one image can't be had, if it can't: a sentence
    unscored: str = ""
    # latents of the whole set, outside the plate of images
    shared: tuple[str, ...] = ()
    # discrete sites that the guide does not have, which are summed out, and how many values each
    # has
    summed: dict[str, int] = field(default_factory=dict)

    @cached_property
    def score_function(self) -> tuple[str, ...]:
        """The sites that are drawn without a reparameterisation."""
        return tuple(name for name in self.not_reparameterized if name not in self.enumerated)

    def words(self) -> list[str]:
        """One line for each site that is summed out, and for each latent: how its KL is had."""
        lines = [
            f"summed out: {name!r}, {count} values (it is not in the guide)"
            for name, count in self.summed.items()
        ]
        lines += [
            f"enumerated: {name!r}, {count} values (the guide asks for it)"
            for name, count in self.enumerated.items()
        ]
        if self.by_pyro:
            return [*lines, f"trained by Pyro's own objective: {self.by_pyro}"]
        lines += [f"KL of {name!r}: analytic" for name in self.analytic]
        return lines + [
            f"KL of {name!r}: sampled, because {why}" for name, why in self.sampled.items()
        ]


@dataclass(eq=False)
class Known:
    """What is known of two programs for as long as both live; it has no strong reference to either,
    nor to their modules.
    """

    store: ParameterStore = field(default_factory=ParameterStore)
    structures: dict[Any, Structure] = field(default_factory=dict)
    layouts: dict[Any, str] = field(default_factory=dict)
    # why whole numbers of such a shape and dtype don't stay what they are; empty where they do
    whole: dict[Any, str] = field(default_factory=dict)
    modules: weakref.WeakValueDictionary[int, nn.Module] = field(
        default_factory=weakref.WeakValueDictionary
    )
    names: weakref.WeakValueDictionary[tuple[str, str], Tensor] = field(
        default_factory=weakref.WeakValueDictionary
    )
    pair: Callable[[], Pair | None] = lambda: None  # the pair in use, if there is one
    parts: tuple[Any, ...] = ()  # references to what it is the knowledge of
    in_pyros_store: Known | None = (
        None  # the same of these programs under Pyro's own parameter store
    )


KNOWN: dict[Any, Known] = {}  # by the parts' identities, until one of the parts is gone


def parts_of(call: Callable[..., Any]) -> tuple[Any, ...]:
    """What makes a program this one: an object and its function for a method, which is made again
    at each access.
    """
    return (call.__self__, call.__func__) if inspect.ismethod(call) else handled(call) or (call,)


def weakly(part: Any, gone: Callable[[Any], Any]) -> Any:
    try:
        return weakref.ref(part, gone)
    except TypeError:  # it can't be referred to weakly: its parameters are kept for good
        return part


def like(x: Tensor, fields: Fields) -> Any:
    rows = sorted(
        (name, made_of(name) if isinstance(name, Part) else "", tuple(value.shape[1:]), value.dtype)
        for name, value in fields.items()
    )
    return tuple(x.shape[1:]), x.dtype, x.device, tuple(rows), scales_ignored()
