"""Batches, and the sites of a trace: copied, drawn and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

Fields = Mapping[str, Tensor]


Score = Callable[[TorchDistribution, Tensor], Tensor]


def plain_score(fn: TorchDistribution, value: Tensor) -> Tensor:
    """``fn.log_prob(value)``: what every run but the evaluator's takes for a site's density."""
    log_prob: Tensor = fn.log_prob(value)
    return log_prob


def log_prob_of(node: Any) -> Tensor:
    """A site's log density as Pyro calls it, with the arguments that its sample statement passes
    on.
    """
    log_prob: Tensor = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return log_prob


Call = Callable[[Tensor, Fields], Any]
Draw = Callable[[Call, Tensor, Fields], poutine.Trace]


def plain_draw(program: Call, x: Tensor, fields: Fields) -> poutine.Trace:
    """A program run once: what every run but a path derivative's takes for the guide's draws and
    their densities.
    """
    with (
        poutine.trace() as handler
    ):  # as a context: as a function's handler it adds a table of shapes to any message
        program(x, fields)
    trace: poutine.Trace = handler.trace
    return trace


def copies(x: Tensor, fields: Fields) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of its own: a program may write into it."""
    return x.clone(), {name: value.clone() for name, value in fields.items()}


def taken(x: Tensor, fields: Fields, rows: slice | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """These rows of a batch."""

    def of(value: Tensor) -> Tensor:
        return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]

    return of(x), {name: of(value) for name, value in fields.items()}


def repeated(x: Tensor, fields: Fields, times: int) -> tuple[Tensor, Fields]:
    """All images, then all again, ``times`` times: ``(K·B, …)``."""
    if times == 1:
        return x, fields
    rows = [each.expand(times, *each.shape).flatten(0, 1) for each in (x, *fields.values())]
    return rows[0], dict(zip(fields, rows[1:], strict=True))


def masked(log_prob: Tensor, mask: Tensor | bool | None) -> Tensor:
    """``log_prob`` where the site's mask is True, 0 elsewhere."""
    if mask is None or mask is True:
        return log_prob
    if mask is False:
        return torch.zeros_like(log_prob)
    return torch.where(mask, log_prob, log_prob.new_zeros(()))


def masks_of(node: Any) -> list[tuple[Tensor | bool, int]]:
    """The masks of a site, of its handlers and of its distribution, and how many event dimensions
    follow each one's own.
    """
    fn = node["fn"]
    masks = [(True if node["mask"] is None else node["mask"], fn.event_dim)]
    while isinstance(fn, Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    return masks


def plate_size(node: Any, frame: Any) -> int:
    """A plate's size; without one (``pyro.plate("data")`` has −1) that of its site."""
    batch = node["fn"].batch_shape
    return int(
        frame.size if frame.size >= 0 else batch[frame.dim] if len(batch) >= -frame.dim else 1
    )


def sample_nodes(trace: poutine.Trace) -> list[tuple[str, Any]]:
    """The trace's true sample sites: neither a plate's subsample nor a ``pyro.deterministic``."""
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic", False)
    ]


def latent_nodes(trace: poutine.Trace) -> dict[str, Any]:
    """The sites that are drawn, by name."""
    return {name: node for name, node in sample_nodes(trace) if not node["is_observed"]}


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
