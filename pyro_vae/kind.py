"""Whether a model's log p(x) is a log mass or a log density: the two are never compared."""

from __future__ import annotations

from pyro import poutine
from torch import Tensor

from pyro_vae.densities import Fields, sample_nodes
from pyro_vae.pair import Pair


def kind_of(pair: Pair, x: Tensor, fields: Fields) -> str:
    """``mass`` or ``density``, by the supports of the observed sites; ``mixed`` where a model observes both."""
    few = {name: value[:2] for name, value in fields.items()}
    with pair.probing():
        drawn = poutine.trace(pair.guide).get_trace(x[:2], few)
        trace = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(x[:2], few)
    discrete = {bool(node["fn"].support.is_discrete) for _, node in sample_nodes(trace) if node["is_observed"]}
    return "mixed" if len(discrete) > 1 else "mass" if discrete == {True} else "density"
