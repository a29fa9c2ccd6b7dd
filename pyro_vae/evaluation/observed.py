"""The observed sites of a model in one run, and digests of their data, by which two numbers are of
one quantity or are not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.compile.trace import apart
from pyro_vae.data.batches import Batch
from pyro_vae.errors import UserError
from pyro_vae.formatting import quantity, shorten
from pyro_vae.pair.layouts import trace_model
from pyro_vae.pair.nodes import innermost, log_prob_of, masks_of, plain_draw, sample_nodes
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Geometry


class Digest:
    """SHA-256 of the values of a set, row by row: a row's float32 bytes where these are its values,
    else its float64 bytes.

    Equal values have equal digests, in whichever dtype, shape and batches they come.
    """

    def __init__(self, *others: str) -> None:
        self._hash = hashlib.sha256("".join(others).encode())

    def add(self, rows: Tensor) -> Digest:
        """The next rows, ``(B, …)``."""
        rows = rows.detach().cpu().contiguous()
        single = rows.float()
        exact = [True]
        if rows.dtype != torch.float32:
            exact = (single.to(rows.dtype) == rows).reshape(len(rows), -1).all(1).tolist()
        if all(exact):
            self._hash.update(single.numpy().tobytes())
        else:
            for row, short, same in zip(rows, single, exact, strict=True):
                self._hash.update((short if same else row.double()).numpy().tobytes())
        return self

    def hex(self) -> str:
        """Of all rows so far."""
        return self._hash.hexdigest()


def refuse_other_data(name: str, a: Mapping[str, Any], other: str, b: Mapping[str, Any]) -> None:
    """A ``UserError`` where the protocols ``a`` and ``b`` are of different quantities, or of
    different data.

    By the digests of x, of what is scored, under whatever names the sites have, and of the
    conditions; a result of before has that of x alone.
    """
    if quantity(a) != quantity(b):
        raise UserError(
            f"{name!r} is {quantity(a)} and {other!r} {quantity(b)}: these are different "
            "quantities. Compare models that observe the same and are conditioned on the same"
        )
    if a.get("sha256") != b.get("sha256"):
        of_x = [shorten(each.get("sha256") or "unknown") for each in (a, b)]
        raise UserError(
            f"{name!r} has sha256 {of_x[0]} and {other!r} {of_x[1]}: their images differ. "
            "Evaluate both on the same tensor"
        )
    if not ("scored" in a and "scored" in b):
        return
    for (first, these), (second, those) in permutations(
        [(name, a["scored"]), (other, b["scored"])]
    ):
        for site, digest in these.items():
            if digest not in those.values():
                raise UserError(
                    f"{first!r} scores at site {site!r} the values {shorten(digest)} and "
                    f"{second!r} {shorten(those.get(site, 'none of these'))}: evaluate both on "
                    "the same x and fields"
                )
    dims = a.get("num_dims"), b.get("num_dims")
    if None not in dims and dims[0] != dims[1]:
        raise UserError(
            f"{name!r} scores {dims[0]} numbers of an image and {other!r} {dims[1]}: one observes "
            f"something twice (sites {', '.join(a['scored'])}; {', '.join(b['scored'])}), which "
            "is another quantity"
        )
    for condition, digest in a["conditions"].items():
        if (known := b["conditions"].get(condition)) != digest:
            raise UserError(
                f"{name!r} is conditioned on {condition!r} of digest {shorten(digest)} and "
                f"{other!r} of {shorten(known)}: evaluate both with the same {condition}"
            )


X = "x"
"""The name of a program's first argument, whatever the program calls it."""


@dataclass(frozen=True)
class Observed:
    """An observed site in one run of the model: its values and which of them are scored, ``(B,
    D)``.
    """

    values: Tensor
    scored: Tensor
    masked: bool  # whether some images may have elements that are not scored

    def moves(self, other: Observed) -> bool:
        """Whether an element that is scored in both runs has another value."""
        if self.values.shape != other.values.shape:
            return True
        return bool(((self.values != other.values) & self.scored & other.scored).any())


class Run:
    """The model at a few images and at one draw of the guide, on copies, as a program may write
    into its batch.
    """

    def __init__(self, pair: Pair, arguments: dict[str, Tensor]) -> None:
        self.pair, self.arguments = pair, arguments
        self.at = pair.structure(*self._batch()).geometry
        self._drawn = plain_draw(pair.guide, *self._batch())

    def _batch(self, **moved: Tensor) -> Batch:
        copies = {name: value.clone() for name, value in {**self.arguments, **moved}.items()}
        return copies.pop(X), copies

    def __call__(self, **moved: Tensor) -> dict[str, Any]:
        """Its sites with these arguments in the others' place; what the model draws by itself is
        the same each time.
        """
        torch.manual_seed(0)
        return dict(
            sample_nodes(trace_model(self.pair.model, self._drawn, *self._batch(**moved), self.at))
        )


def is_factor(node: Any) -> bool:
    return isinstance(innermost(node["fn"]), dist.Unit)


def observed(nodes: Mapping[str, Any], at: Geometry) -> dict[str, Observed]:
    """The observed sites that score anything; a factor observes nothing."""
    found = {}
    for name, node in nodes.items():
        if not node["is_observed"] or is_factor(node):
            continue
        masks = masks_of(node)
        if any(mask is False for mask, _ in masks):
            continue
        fn = node["fn"]
        batch = fn.batch_shape[
            at.particle_dim + 1 :
        ]  # of plates: those of a sum's values are further left
        shape, dim = batch + fn.event_shape, len(batch) + at.frame(node).dim
        scored = torch.ones(shape, dtype=torch.bool, device=node["value"].device)
        partial = [
            mask.reshape(mask.shape + (1,) * dims)
            for mask, dims in masks
            if isinstance(mask, Tensor)
        ]
        for mask in partial:
            scored = scored & mask
        while scored.dim() > len(shape):
            scored = scored.any(0)
        value, scored = (
            each.movedim(dim, 0).reshape(shape[dim], -1)
            for each in (node["value"].broadcast_to(shape), scored)
        )
        scored = scored & ~value.isnan()  # which a law leaves out, if there is one
        masked = not bool(scored.all()) or any(mask.numel() > 1 for mask in partial)
        found[name] = Observed(value, scored, masked)
    return found


def differences(nodes: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of each site's log densities in two runs: 0, or a GPU's rounding,
    where the runs are equal.
    """
    found = {}
    for name, node in nodes.items():
        both = node, others[name]
        a, b = (scale_and_mask(log_prob_of(n), n["scale"], n["mask"]) for n in both)
        found[name] = apart(a, b)[0]
    return found


def equal(observed: Observed, rows: Tensor) -> bool:
    """Whether what is scored are these rows: in any order of an image's elements, where all are
    scored.
    """
    values, rows = observed.values.double(), rows.reshape(len(rows), -1).double()
    if values.shape != rows.shape:
        return False
    if bool(observed.scored.all()):
        return torch.equal(values.sort(1).values, rows.sort(1).values)
    return bool(((values == rows) | ~observed.scored).all())
