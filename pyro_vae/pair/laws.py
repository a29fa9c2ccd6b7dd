"""The distributions of sites: what is inside them, and their names in a sentence."""

from __future__ import annotations

from typing import Any

from pyro import distributions as dist
from torch.distributions import Independent

ONE_KIND = "give both a discrete distribution, or both a continuous one (such as a relaxed one)"
"""What to do about a mass against a density."""


def innermost(fn: Any) -> Any:
    """The distribution within its events, masks and transforms."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def one_by_one(fn: Any) -> Any:
    """The distribution within its events alone."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def law_of(fn: Any) -> str:
    while isinstance(fn, dist.Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        fn = fn.base_dist
    return type(fn).__name__.lstrip("_")


def is_discrete(node: Any) -> bool:
    try:
        return bool(node["fn"].support.is_discrete)
    except NotImplementedError:  # a law that names no support
        return False


def is_point_mass(node: Any) -> bool:
    return isinstance(innermost(node["fn"]), dist.Delta)


def two_kinds(prior: Any, drawn: Any) -> str:
    """The two laws of a latent in words, where one is of masses and the other of densities."""
    masses = is_point_mass(prior) or is_point_mass(drawn)  # which a discrete law may have as well
    if masses or is_discrete(prior) == is_discrete(drawn):
        return ""
    of = [f"{law_of(n['fn'])}, a {'mass' if is_discrete(n) else 'density'}" for n in (prior, drawn)]
    return f"{of[0]}, in the model and {of[1]}, in the guide"
