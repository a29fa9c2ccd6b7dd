"""What a number is: the data that its observed sites score, what they are conditioned on, its kind,
and the digests of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Normal, StudentT

from pyro_vae.data.loaders import Batch
from pyro_vae.errors import UserError
from pyro_vae.fields import is_constant
from pyro_vae.formatting import quantity, shorten
from pyro_vae.pair.enumeration import innermost
from pyro_vae.pair.layouts import Geometry, masks_of, plain_draw, sample_nodes, trace_model
from pyro_vae.pair.module_state import own_buffers
from pyro_vae.pair.runtime import Pair

LOOKED_AT = 8
"""Images on which the arguments are told apart, and one more for each argument that is constant on
these: the model runs on them once for each argument.
"""

DIGESTED = 32
"""Images whose values stand for those of a site that observes no argument itself."""

X = "x"
"""The name of a program's first argument, whatever the program calls it."""


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


@dataclass(frozen=True)
class _Observed:
    """An observed site in one run of the model: its values and which of them are scored, ``(B,
    D)``.
    """

    values: Tensor
    scored: Tensor
    masked: bool  # whether some images may have elements that are not scored

    def moves(self, other: _Observed) -> bool:
        """Whether an element that is scored in both runs has another value."""
        if self.values.shape != other.values.shape:
            return True
        return bool(((self.values != other.values) & self.scored & other.scored).any())


@dataclass
class _Found:
    """The arguments by what they move."""

    sites: dict[str, _Observed]
    moved: dict[str, list[str]]  # the arguments that move each site's values
    masked: dict[str, bool]
    conditions: list[str] = field(default_factory=list)  # those that move densities alone
    digested: dict[str, _Observed] = field(default_factory=dict)  # the sites at more images

    def is_itself(self, site: str, arguments: Mapping[str, Tensor]) -> bool:
        """Whether the site's values, or those of the sites that the same argument moves together,
        are that argument's own.
        """
        by = self.moved[site]
        parts = [self.sites[other] for other, those in self.moved.items() if those == by]
        values, scored = (
            torch.cat([getattr(part, name) for part in parts], 1) for name in ("values", "scored")
        )
        together = _Observed(values, scored, masked=False)
        return len(by) == 1 and any(
            _equal(each, arguments[by[0]]) for each in (self.sites[site], together)
        )


class _Run:
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
            self._few.append(
                (batch[0][rows], {name: value[rows] for name, value in batch[1].items()})
            )

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
            run = _Run(self.pair, arguments)
            nodes = run()
            found = self._found(run, nodes)
            own = {site: found.is_itself(site, arguments) for site in found.sites}
            if not all(own.values()):  # the digest is of more rows than tell the arguments apart
                run = _Run(self.pair, kept)
                found.digested = _observed(run(), run.at)
        laws = {name: nodes[name]["fn"] for name in found.sites}
        factors = [name for name, node in nodes.items() if node["is_observed"] and _is_factor(node)]
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

    def _found(self, run: _Run, nodes: dict[str, Any]) -> _Found:
        """What each argument moves; ``nodes`` are the model's sites where none is moved."""
        sites = _observed(nodes, run.at)
        found = _Found(
            sites, {site: [] for site in sites}, {site: each.masked for site, each in sites.items()}
        )
        noise = cache(lambda: _differences(nodes, run()))
        unknown = []
        for name in sorted(self._digests, key=_x_first):
            try:
                if name not in self._varied:
                    raise ValueError("every row is the same")
                others = run(**{name: run.arguments[name].roll(1, 0)})
                then = _observed(others, run.at)
                by = [site for site in sites if sites[site].moves(then[site])]
                given = not by and any(
                    each > 10 * noise()[site] for site, each in _differences(nodes, others).items()
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
            own = [site for site in left if _equal(sites[site], run.arguments[name])]
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


def _is_factor(node: Any) -> bool:
    return isinstance(innermost(node["fn"]), dist.Unit)


def _observed(nodes: Mapping[str, Any], at: Geometry) -> dict[str, _Observed]:
    """The observed sites that score anything; a factor observes nothing."""
    found = {}
    for name, node in nodes.items():
        if not node["is_observed"] or _is_factor(node):
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
        found[name] = _Observed(value, scored, masked)
    return found


def _differences(nodes: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of each site's log densities in two runs: 0, or a GPU's rounding,
    where the runs are equal.
    """
    found = {}
    for name, node in nodes.items():
        a, b = (
            scale_and_mask(
                n["fn"].log_prob(n["value"], *n["args"], **n["kwargs"]), n["scale"], n["mask"]
            )
            for n in (node, others[name])
        )
        found[name] = float(
            torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
            .nan_to_num(torch.inf)
            .max()
        )
    return found


def _equal(observed: _Observed, rows: Tensor) -> bool:
    """Whether what is scored are these rows: in any order of an image's elements, where all are
    scored.
    """
    values, rows = observed.values.double(), rows.reshape(len(rows), -1).double()
    if values.shape != rows.shape:
        return False
    if bool(observed.scored.all()):
        return torch.equal(values.sort(1).values, rows.sort(1).values)
    return bool(((values == rows) | ~observed.scored).all())


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
