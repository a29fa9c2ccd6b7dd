"""The protocol of a number: data, quantity (joint or conditional), kind (mass or density),
versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, StudentT

from pyro_vae.data.batches import Batch
from pyro_vae.evaluation.observed import (
    Digest,
    Observed,
    Run,
    X,
    differences,
    equal,
    is_factor,
    observed,
)
from pyro_vae.fields import is_constant
from pyro_vae.pair.module_state import own_buffers
from pyro_vae.pair.nodes import innermost, taken
from pyro_vae.pair.runtime import Pair

LOOKED_AT = 8
"""Images on which the arguments are distinguished, and one more for each argument that is constant
on these: the model runs on them once for each argument.
"""

DIGESTED = 32
"""Images whose values represent those of a site that observes no argument itself."""


@dataclass
class _Found:
    """The arguments by what they move."""

    sites: dict[str, Observed]
    moved: dict[str, list[str]]  # the arguments that move each site's values
    masked: dict[str, bool]
    conditions: list[str] = field(default_factory=list)  # those that move densities alone
    digested: dict[str, Observed] = field(default_factory=dict)  # the sites at more images

    def is_itself(self, site: str, arguments: Mapping[str, Tensor]) -> bool:
        """Whether the site's values, or those of the sites that the same argument moves together,
        are that argument's own.
        """
        by = self.moved[site]
        parts = [self.sites[other] for other, those in self.moved.items() if those == by]
        values, scored = (
            torch.cat([getattr(part, name) for part in parts], 1) for name in ("values", "scored")
        )
        together = Observed(values, scored, masked=False)
        return len(by) == 1 and any(
            equal(each, arguments[by[0]]) for each in (self.sites[site], together)
        )


class Quantity:
    """What an estimate is of, as the images that it is of and the model's own sites tell.

    - **Scored**, left of the bar: an argument of the model (x, a field) that moves the value of an
      observed site. Where its site is under a mask it is printed ``x_obs``. An observed value that
      no argument moves is printed by its site's name.
    - **A condition**, right of the bar: an argument that moves no observed value, but a density of
      the model, of any site.
    - An argument of the guide alone, or one that moves nothing, is neither. A ``pyro.factor`` is no
      density: it is named.

    An argument is moved by giving each of a few images the row of the one before it, at one draw of
    the latents; an effect on images that are not among these is not seen. The rows always differ,
    unless the argument is constant on the whole set (a single image, say), or the model fails on
    other rows: then it is scored where a site observes its very values, and a condition if the
    model's signature names it; x is what explains a site that nothing else does.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._digests: dict[str, Digest] = {}  # of x and of the fields that the model receives
        self._first: dict[str, Tensor] = {}  # each one's first row
        self._varied: set[str] = set()
        self._constants: dict[str, Any] = {}  # what is one for all images
        self._few: list[Batch] = []
        self._num_seen = 0

    def see(self, batch: Batch) -> None:
        """The next images that are scored, with their fields, as they are given; each is to be seen
        once.
        """
        x, fields = batch
        self._keep(batch, slice(max(DIGESTED - self._num_seen, 0)))
        selected = self.pair.model.select(fields)
        self._constants |= {n: n.value for n in selected if is_constant(n) and n.value is not None}
        varying = {n: rows for n, rows in selected.items() if not is_constant(n)}
        for name, rows in {X: x, **varying}.items():
            self._digests.setdefault(name, Digest()).add(rows)
            if name not in self._varied:
                first = self._first.setdefault(name, rows[:1].clone())
                other = (rows != first).reshape(len(rows), -1).any(1).nonzero()
                if len(other):
                    self._varied.add(name)
                    row = int(other[0])
                    self._keep(batch, slice(max(row, DIGESTED - self._num_seen), row + 1))
        self._num_seen += len(x)

    @property
    def num_images(self) -> int:
        """How many images were seen."""
        return self._num_seen

    def _keep(self, batch: Batch, rows: slice) -> None:
        if len(batch[0][rows]):
            self._few.append(taken(*batch, rows))

    def told(self, bits_offset: float | None = None) -> tuple[dict[str, Any], tuple[str, ...]]:
        """For the protocol, and what is to be said of it.

        ``quantity`` in words; ``num_dims``, the elements of one image that are scored, None where
        images differ; ``sha256`` of x; ``scored``, a digest of each observed site's values;
        ``conditions``, one of each condition; ``kind``: ``mass`` or ``density``, ``mixed`` where a
        model observes both; ``factors``, where there are any.
        """
        kept = {X: self.pair.cast(torch.cat([batch[0] for batch in self._few]))}
        kept |= {name: torch.cat([b[1][name] for b in self._few]) for name in self._few[0][1]}
        rows = self._telling(kept)
        arguments = {name: value[rows] for name, value in kept.items()}
        buffers = [
            (m, name)
            for m in self.pair.modules
            for name, each in m._buffers.items()
            if each is not None
        ]
        with self.pair.probing(), own_buffers(buffers):
            run = Run(self.pair, arguments)
            nodes = run()
            found = self._found(run, nodes)
            own = {site: found.is_itself(site, arguments) for site in found.sites}
            if not all(own.values()):  # the digest is of more rows than were changed
                run = Run(self.pair, kept)
                found.digested = observed(run(), run.at)
        laws = {name: nodes[name]["fn"] for name in found.sites}
        factors = [name for name, node in nodes.items() if node["is_observed"] and is_factor(node)]
        counts: Any = sum(each.scored.sum(1) for each in found.sites.values())
        num_dims = int(counts[0]) if found.sites and bool((counts == counts[0]).all()) else None
        said = {
            "quantity": _in_words(found, factors),
            "num_dims": num_dims,
            "sha256": self._digests[X].hex(),
            "scored": {site: self._digest(site, found, own[site]) for site in found.sites},
            "conditions": {
                **{name: self._digests[name].hex() for name in found.conditions},
                **{name: Digest(repr(value)).hex() for name, value in self._constants.items()},
            },
            "kind": _kind(laws),
            **({"factors": factors} if factors else {}),
        }
        notes = [
            f"site {name!r} is a pyro.factor. Its value is added, so the number is not a log "
            "probability of data"
            for name in factors
        ]
        notes += [
            f"site {site!r} observes values that the model computes from {' and '.join(by)}: "
            "the number is the log probability of these values"
            for site, by in found.moved.items()
            if by and not own[site]
        ]
        if bits_offset is not None and num_dims is None:
            notes.append(
                "no bits/dim, because not every image has the same number of scored elements"
            )
        return said, (*notes, *_narrow_notes(laws, bits_offset))

    def _telling(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Of the rows that were kept, the first ones, and for each argument one that differs from
        its first row.
        """
        chosen = set(range(min(LOOKED_AT, len(kept[X]))))
        for name in self._varied:
            rows = kept[name]
            other = (rows != rows[:1]).reshape(len(rows), -1).any(1).nonzero()
            chosen |= set(other[:1, 0].tolist())
        return torch.tensor(sorted(chosen), device=kept[X].device)

    def _found(self, run: Run, nodes: dict[str, Any]) -> _Found:
        """What each argument moves; ``nodes`` are the model's sites where none is moved."""
        sites = observed(nodes, run.at)
        found = _Found(
            sites, {site: [] for site in sites}, {site: each.masked for site, each in sites.items()}
        )
        noise = cache(lambda: differences(nodes, run()))
        unknown = []
        for name in sorted(self._digests, key=_x_first):
            try:
                if name not in self._varied:
                    raise ValueError("every row is the same")
                others = run(**{name: run.arguments[name].roll(1, 0)})
                then = observed(others, run.at)
                by = [site for site in sites if sites[site].moves(then[site])]
                given = not by and any(
                    each > 10 * noise()[site] for site, each in differences(nodes, others).items()
                )
            except Exception:  # whatever a program raises on rows that don't belong together
                unknown.append(name)
                continue
            for site in by:
                found.moved[site].append(name)
            for site in sites:
                found.masked[site] |= not torch.equal(sites[site].scored, then[site].scored)
            if given:
                found.conditions.append(name)
        left = [site for site, by in found.moved.items() if not by]
        for name in reversed(unknown):  # x is the last
            own = [site for site in left if equal(sites[site], run.arguments[name])]
            if name == X and not own:
                own = [site for site in left if not found.moved[site]]
            for site in own:
                found.moved[site].append(name)
            if not own and (name == X or (name != "index" and self.pair.model.wants(name))):
                found.conditions.append(name)
        return found

    def _digest(self, site: str, found: _Found, own: bool) -> str:
        """That of the argument that the site observes; else of those that move it and of what the
        first images have there.
        """
        digests = [self._digests[name].hex() for name in found.moved[site]]
        if own:
            return digests[0]
        each = found.digested[site]
        values = each.values.where(each.scored, each.values.new_zeros(()))
        return Digest(*digests).add(values[:DIGESTED]).hex()


def _x_first(name: str) -> tuple[bool, str]:
    return name != X, name


# ---- in words


def _in_words(found: _Found, factors: list[str]) -> str:
    """``log p(x, y_obs | c) + log factor 'f'``."""
    masked: dict[str, bool] = {}
    for site, by in found.moved.items():
        for name in [name for name in by if name != "index"] or [site]:
            masked[name] = masked.get(name, False) or found.masked[site]
    scored = ", ".join(
        f"{name}_obs" if masked[name] else name for name in sorted(masked, key=_x_first)
    )
    given = ", ".join(sorted(found.conditions, key=_x_first))
    of_data = [f"log p({scored}{' | ' * bool(given)}{given})"] if scored else []
    words = " + ".join([*of_data, *(f"log factor {name!r}" for name in factors)])
    return words if of_data or not given else f"{words} given {given}"


def _kind(laws: Mapping[str, Any]) -> str:
    discrete = {bool(fn.support.is_discrete) for fn in laws.values()}
    return "mixed" if len(discrete) > 1 else "mass" if discrete == {True} else "density"


def _narrow_notes(laws: Mapping[str, Any], bits_offset: float | None) -> list[str]:
    """A warning where the σ of a Gaussian or Student t is below the grain of dequantized data:
    there it scores the added noise.
    """
    if bits_offset is None:
        return []
    grain, found = 2.0**-bits_offset, []
    for name, fn in laws.items():
        base: Any = innermost(fn)
        if isinstance(base, Normal | StudentT) and float(base.scale.min()) < grain:
            found.append(
                f"site {name!r}: σ falls to {float(base.scale.min()):.2g}, below "
                f"1/{2**bits_offset:g}, the step between two grey levels. The density then "
                "depends on the dequantization noise, not on the images. Give σ a lower bound"
            )
    return found
