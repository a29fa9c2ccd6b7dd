"""The structure of a pair, as its dry run found it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from pyro_vae.pair.geometry import Geometry

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
