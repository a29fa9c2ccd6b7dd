"""Digests (SHA-256) of data, so that numbers of different data are not compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.formatting import quantity, shorten


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
