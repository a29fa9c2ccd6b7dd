"""The support of the observed sites, checked at all images of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.errors import UserError
from pyro_vae.fields import is_constant
from pyro_vae.pair.nodes import (
    Fields,
    copies,
    innermost,
    law_of,
    log_prob_of,
    masks_of,
    sample_nodes,
    taken,
)
from pyro_vae.pair.program import validation
from pyro_vae.pair.trial import Nodes, trace_pair
from pyro_vae.protocols import hook
from pyro_vae.tensors import slices

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair


def check_support(node: Any) -> None:
    """A ``UserError`` naming the first value outside the support, which ``validate_args=False``
    would hide. What is masked is not looked at, nor a NaN that the law itself leaves out.
    """
    fn, value = node["fn"], node["value"]
    try:
        inside = fn.support.check(value)
        if bool(inside.all()):
            return
        value = _judged(node)
        inside = fn.support.check(value)
    except NotImplementedError:  # a law that names no support
        return
    if not bool(inside.all()):
        base = innermost(fn)
        elementwise = base.support.check(value)
        bad = value[~elementwise] if elementwise.shape == value.shape else value[~inside]
        remedy = _REMEDIES.get(
            type(base.support), "choose a likelihood whose support contains the data"
        )
        if not node["is_observed"]:
            remedy = "the guide draws this value: give the guide a distribution on that support"
        raise UserError(
            f"site {node['name']!r}: the value {bad.flatten()[0].item():g} is outside the support "
            f"of {law_of(fn)}: {remedy}"
        )


def _judged(node: Any) -> Tensor:
    """A site's value, one of its own law's where it is not scored: masked, or NaN in a law that
    leaves NaN out.
    """
    fn, value = node["fn"], node["value"]
    left_out = value.isnan()
    if bool(left_out.any()):
        with validation(distributions=False):
            left_out = left_out & ~log_prob_of(node).isnan().any()
    for mask, dims in masks_of(node):
        if mask is False:
            return fn.sample()
        if isinstance(mask, Tensor):
            left_out = left_out | ~mask.reshape(mask.shape + (1,) * dims)
    return torch.where(left_out, fn.sample(), value) if bool(left_out.any()) else value


_REAL = "choose a likelihood of real values such as Gaussian"
_REMEDIES = {
    type(
        constraints.boolean
    ): f"binarize the images (binarize='dynamic', --binarize dynamic), or {_REAL}",
    type(constraints.unit_interval): f"scale the images to [0, 1], or {_REAL}",
    constraints.integer_interval: (
        "give the grey levels as stored, whole numbers from 0, and build the likelihood with "
        "their number, levels=…"
    ),
    type(
        constraints.nonnegative_integer
    ): "give the grey levels as they are stored, whole numbers from 0",
}
"""What to do about a value outside, by the support."""


def check_fields(pair: Pair, fields: Fields) -> None:
    """What a program itself has to say against the named fields of all images: its method
    ``check_fields(fields)``.
    """
    for program in (pair.model, pair.guide):
        if check := hook(program.owner, "check_fields"):
            check(fields)


SUPPORT_ROWS = 500
"""Images that the support of an observed site is looked at together."""


def check_all_support(pair: Pair, x: Tensor, fields: Fields, first: int = 0) -> None:
    """The fields, and the support of every observed site at all of these images, of which the first
    is number ``first`` of the set.
    """
    check_fields(pair, fields)
    check_support_of_set(pair, len(x), partial(taken, x, fields), first)


def check_support_of_set(
    pair: Pair, num_images: int, images: Callable[[slice], tuple[Tensor, Fields]], first: int = 0
) -> None:
    """The support of every observed site at all images, not only at the dry run's.

    Args:
        images: rows of the set -> their images ``(B, *event_shape)`` and fields, on the pair's
            device. They are asked for a few at a time: the set may be larger than the device.
        first: the number of the first of them, for messages.

    Where the model observes x itself, perhaps reshaped, and all of x is inside the support that
    five images have, one look suffices; else, as a support may depend on the batch, the model runs
    once on all images.
    """
    parts, few = slices(num_images, SUPPORT_ROWS), slice(0, 5)

    def cast(rows: slice) -> Tensor:
        return pair.cast(images(rows)[0])

    def observed(rows: slice) -> Nodes:
        x, fields = images(rows)
        model, *_ = trace_pair(pair, *copies(pair.cast(x), fields), first + rows.start)
        return {name: node for name, node in sample_nodes(model) if node["is_observed"]}

    def join_the_first(rows: slice) -> bool:
        (x, named), (others, theirs) = images(slice(5)), images(rows)
        both = {name: torch.cat((named[name], theirs[name])) for name in named}
        with suppress(UserError):
            return bool(trace_pair(pair, pair.cast(torch.cat((x, others))), both))
        return False

    def holds_all(node: Any) -> bool:
        value = node["value"]
        if not torch.equal(value.flatten(), cast(few).flatten()):
            return False
        try:  # one read for all of them
            inside = [
                node["fn"].support.check(x.reshape(len(x), *value.shape[1:])).all()
                for x in map(cast, parts)
            ]
            return bool(torch.stack(inside).all())
        except RuntimeError:  # the support's bounds are tensors of five images
            return False

    with pair.probing():
        for row in _extreme_rows(parts, images):
            begin = max(0, min(row, num_images - 5))
            try:
                observed(slice(begin, begin + 5))
            except UserError:  # perhaps for what they all miss, such as a sequence of full length
                if not join_the_first(slice(begin, begin + 5)):
                    raise
        if all(map(holds_all, observed(few).values())):
            return
        for rows in parts:
            for node in observed(rows).values():
                check_support(node)
                _refuse_nan(node, first + rows.start)


def _refuse_nan(node: Any, first: int) -> None:
    """A ``UserError`` for the first image, counted from ``first``, whose log density is NaN."""
    if len(bad := _rows_of(node, log_prob_of(node).isnan())):
        raise UserError(
            f"image {first + int(bad[0])}: log_prob of site {node['name']!r} is NaN: look "
            "for NaN in the image or in the network's output, which validate_args=False "
            "hides"
        )


def _rows_of(node: Any, bad: Tensor) -> Tensor:
    """The images, by number among those of the node, where something is True."""
    dims = [frame.dim for frame in node["cond_indep_stack"] if frame.vectorized]
    data = max(dims, key=lambda dim: bad.shape[dim] if bad.dim() >= -dim else 0, default=None)
    if data is None or bad.dim() < -data:
        return bad.any().reshape(1).nonzero()[:, 0]
    rows = bad.movedim(data, 0)
    return rows.reshape(len(rows), -1).any(1).nonzero()[:, 0]


def _extreme_rows(
    parts: Sequence[slice], images: Callable[[slice], tuple[Tensor, Fields]]
) -> set[int]:
    """Rows that have the least and the largest of each field of whole numbers, such as a class
    −1.
    """
    names = [
        name
        for name, value in images(slice(0, 5))[1].items()
        if name != "index" and not is_constant(name) and not value.is_floating_point()
    ]
    least: dict[tuple[str, int], tuple[int, int]] = {}  # of each and its negative: (value, row)
    for rows in parts if names else ():
        fields = images(rows)[1]
        for name, sign in product(names, (1, -1)):
            smallest = (sign * fields[name].reshape(len(fields[name]), -1).long()).amin(1)
            row = int(smallest.argmin())
            here = int(smallest[row]), rows.start + row
            least[name, sign] = min(least.get((name, sign), here), here)
    return {row for _, row in least.values()}
