"""What is known of a pair after its dry run."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_vae.densities import Geometry


@dataclass(frozen=True)
class Structure:
    """Sites, plates and closed forms of a pair, as a dry run on a few images told."""

    observed: tuple[str, ...]
    latents: tuple[str, ...]  # in the model's order
    geometry: Geometry
    plates: tuple[str, str]  # the data plate's name in the model and in the guide
    analytic: tuple[str, ...]  # latents whose KL has a closed form that is right here
    sampled: dict[str, str]  # the other latents, and why their KL is sampled
    not_reparameterized: tuple[str, ...]
    point_masses: tuple[str, ...]
    subsampling: bool
