"""What a model observes: a log mass or a log density, which are never compared, and how narrow its Gaussians are."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from torch import Tensor
from torch.distributions import Normal, StudentT

from pyro_vae.densities import Fields, sample_nodes
from pyro_vae.pair import Pair

NARROW_IMAGES = 100
"""Images on which a Gaussian's σ is looked at."""


def kind_of(pair: Pair, x: Tensor, fields: Fields) -> str:
    """``mass`` or ``density``, by the supports of the observed sites; ``mixed`` where a model observes both."""
    discrete = {bool(fn.support.is_discrete) for fn in _observed(pair, x, fields, 2).values()}
    return "mixed" if len(discrete) > 1 else "mass" if discrete == {True} else "density"


def given(pair: Pair, fields: Fields) -> dict[str, str]:
    """For the protocol: the fields that the model names, so that the number is log p(x | y) of them, not log p(x)."""
    names = sorted(name for name in fields if name != "index" and pair.model.wants(name))
    return {"given": ", ".join(names)} if names else {}


def narrow_notes(pair: Pair, x: Tensor, fields: Fields, bits_offset: float | None) -> tuple[str, ...]:
    """A warning where the σ of a Gaussian or Student t is below the grain of dequantized data: there it scores the added noise."""
    if bits_offset is None:
        return ()
    grain, found = 2.0**-bits_offset, []
    for name, fn in _observed(pair, x, fields, NARROW_IMAGES).items():
        base: Any = fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if isinstance(base, Normal | StudentT) and float(base.scale.min()) < grain:
            found.append(
                f"site {name!r}: σ falls to {float(base.scale.min()):.2g}, below 1/{2**bits_offset:g}, the grain of the data: "
                "the density then rewards the dequantization noise, not the images; bound σ from below"
            )
    return tuple(found)


def _observed(pair: Pair, x: Tensor, fields: Fields, number: int) -> dict[str, Any]:
    """The observed sites' distributions at the first images, z drawn from the guide."""
    # copies: a program may write into its batch
    few = x[:number].clone(), {name: value[:number].clone() for name, value in fields.items()}
    with pair.probing():
        drawn = poutine.trace(pair.guide).get_trace(*few)
        trace = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(*few)
    return {name: node["fn"] for name, node in sample_nodes(trace) if node["is_observed"]}
