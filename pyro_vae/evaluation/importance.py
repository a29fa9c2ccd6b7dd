"""log p(x) by importance sampling: IW-K with its protocol, two error bars, a bias estimate and
diagnostics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import ambient, distributed, registry
from pyro_vae.data.loaders import Batch, Resident, Source, make_source, refuse_repeats
from pyro_vae.devices import find_device
from pyro_vae.distributed import Alone
from pyro_vae.errors import UserError
from pyro_vae.evaluation.precision import (
    DRAWS,
    FLOAT32,
    IMAGES,
    Precision,
    find_precision,
    measure_error,
)
from pyro_vae.evaluation.proposals import Proposal
from pyro_vae.evaluation.protocol import Quantity
from pyro_vae.evaluation.result import EXACT, LogMarginal
from pyro_vae.evaluation.scorer import Curve, Scorer
from pyro_vae.evaluation.tiling import padded, rows_of, stops, tile_sizes, tiled
from pyro_vae.evaluation.traced_weights import Weights, make_weights
from pyro_vae.evaluation.weight_sums import ImageSums
from pyro_vae.pair import dry_run
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Structure
from pyro_vae.rng import check_seed, permutation
from pyro_vae.training.oracle import check_scores
from pyro_vae.validation import check_count

_MODE_DEPENDENT = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@takes_fields
def log_marginal(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_samples: int = 5000,
    proposal: str | Proposal = "guide",
    precision: str = "float32",
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = False,
    bits_offset: float | None = None,
    **fields: Any,
) -> LogMarginal:
    """Estimate log p(x) of each image by K = ``num_samples`` importance samples (IWAE, equation 8),
    streaming.

    Modules run in eval mode, without gradients, and are restored; sums are float64; memory does not
    grow with K. Where no latent is drawn (there is none, or all are summed out) the number is
    exact, and one run of the model stands for all K. Where torch.distributed is initialised, every
    process calls this alike, scores its part, and has the whole result.

    Args:
        x: images ``(N, *event_shape)`` exactly as they are to be scored: binarized or dequantized
            already.
        protocol: what the caller knows of the data (data set, binarization); it is printed with the
            number.
        bits_offset: log2 of the number of levels, for dequantized data: bits per dimension are then
            reported too.
        **fields: named arguments of the programs, one row an image. The number is log p(x, y) where
            the model observes y, log p(x | y) where y moves its densities alone:
            `pyro_vae.evaluation.protocol.Quantity` has the rule.

    Raises:
        UserError: where the number would not be log p(x) of each image, in one sentence.
    """
    check_count("num_samples", num_samples)
    check_seed(seed)
    arithmetic = find_precision(precision)
    drawn: Proposal = registry.build("proposal", proposal)
    place = find_device(device)
    pair, group = Pair.of(model, guide).to(place), distributed.current()
    shown = progress and group.first
    notes = mode_notes(pair) + ((drawn.warning,) if drawn.warning else ())
    found, scored = _Gathered(num_samples), Quantity(pair)
    with running(pair, place), arithmetic.running():
        work = _prepare(pair, x, fields, drawn, num_samples, seed, place)
        checked, doubts = check_scores(pair, *work.first, supports=drawn.draws_from_guide)
        scorer = work.scorer(compile, arithmetic)
        if shown:
            tqdm.write(f"log weights: {scorer.how}", file=sys.stderr)
        in_words = _precision_words(work, scorer, arithmetic)
        mine = cycle(number == group.rank for number in range(group.size))

        def seen(batch: Batch) -> bool:
            if not isinstance(work.source, Resident):
                dry_run.check_all_support(pair, pair.cast(batch[0]), batch[1])
            scored.see(batch)
            return next(mine)

        for start, images, named in tiled(work.source, scorer.tile, shown, seen):
            found.add(start, scorer.score(start, images, named))
        found.gather(group)
        in_words, memory = (
            group.once(lambda: in_words),
            chain.from_iterable(group.gather(scorer.notes)),
        )
        known, said_of_it = scored.told(bits_offset)
        said_of_it += work.source.counted(scored.num_images)
    said = {
        "estimator": EXACT if work.exact else f"IW-{num_samples}",
        "num_samples": num_samples,
        "num_images": scored.num_images,
        **({} if work.exact else {"proposal": _words(drawn)}),
        "precision": in_words,
        **ambient.said(place),
        "seed": seed,
        **known,
        "checked": checked,
        **(dict(protocol) if protocol else {"data": "as given"}),
    }
    return LogMarginal(
        **found.figures(),
        num_samples=num_samples,
        protocol=said,
        notes=(*notes, *said_of_it, *doubts, *dict.fromkeys(memory)),
        bits_offset=bits_offset,
    )


@dataclass(frozen=True)
class _Work:
    """What is to be scored: every image of the source by K draws of the proposal."""

    pair: Pair
    source: Source
    first: Batch  # the source's first images, cast
    proposal: Proposal
    num_samples: int
    seed: int
    rows: int  # draws times images of one run of the model
    exact: bool

    def scorer(self, tier: str, precision: Precision) -> Scorer:
        """Staged in this tier and at this precision."""
        precision.check(self.first[0].dtype, self.first[0].device)

        def make(chunk: int, tile: int) -> tuple[Weights, str]:
            size = self.source.num_images, self.num_samples, chunk
            first, others = (
                padded(*batch, tile, self.pair)
                for batch in (self.first, self.source.drawn(self.seed))
            )
            return make_weights(self.pair, self.proposal, tier, *size, first, others, precision)

        size = self.rows, self.source.num_images, self.num_samples
        return Scorer(self.pair, make, *size, self.seed, self.proposal.strata, self.exact)

    def some(self, number: int) -> Batch:
        """A random few of the images; of a stream the first ones."""
        if isinstance(self.source, Resident):
            rows = permutation(self.source.num_images, 0)[:number]
            return self.source.take(rows.to(self.source.x.device))
        return self.first[0][:number], {
            name: value[:number] for name, value in self.first[1].items()
        }


def _prepare(
    pair: Pair,
    x: Any,
    fields: Mapping[str, Any],
    proposal: Proposal,
    num_samples: int,
    seed: int,
    place: torch.device,
) -> _Work:
    """The images as a source, in tiles of one run of the model; a ``UserError`` where the number
    would not be log p(x).
    """
    refuse_repeats(x)
    rows = rows_of(pair, place)
    source = _tiles_of(x, fields, tile_sizes(num_samples, rows)[1], place)
    images, named = next(source.in_order())
    structure = _refuse(pair, source, (images, named), proposal)
    exact = proposal.is_exact(structure)
    values = [*structure.summed.values(), *structure.enumerated.values()]
    if exact or values:  # each value of a site that is summed over is a row of the model as well
        rows = max(1, rows // prod(values))
        source = _tiles_of(x, fields, rows if exact else tile_sizes(num_samples, rows)[1], place)
    return _Work(pair, source, (pair.cast(images), named), proposal, num_samples, seed, rows, exact)


def _tiles_of(x: Any, fields: Mapping[str, Any], tile: int, place: torch.device) -> Source:
    """In batches of one tile, those of a DataLoader too."""
    source = make_source(x, fields, tile, place)
    source.batch_size = tile
    return source


@contextmanager
def running(pair: Pair, place: torch.device) -> Iterator[None]:
    """Eval mode in float32, no gradients, the caller's random state kept; a program's own mistake
    stays one sentence.
    """
    with (
        pair.active(training=False, may_create=False),
        torch.random.fork_rng([place] if place.type == "cuda" else []),
        torch.no_grad(),
    ):
        yield


def _precision_words(work: _Work, scorer: Scorer, precision: Precision) -> str:
    """For the protocol; reduced precision with its error against float32, in the same noise on a
    few of the images.
    """
    if not precision.reduced:
        return str(work.first[0].dtype).removeprefix("torch.")
    plain = work.scorer("graph", FLOAT32)

    def exact(x: Tensor, fields: Mapping[str, Tensor], k: int) -> Tensor:
        with FLOAT32.running():
            return plain.estimate(x, fields, k)

    error = measure_error(exact, scorer.estimate, *work.some(IMAGES), min(work.num_samples, DRAWS))
    return f"{precision.words} ({error})"


class _Gathered:
    """The figures of each tile of images."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._tiles: list[tuple[int, Tensor, Curve]] = []  # (first image, columns, curve)

    def add(self, start: int, scored: Iterable[tuple[ImageSums, Curve]]) -> None:
        """A tile, in one part or more; its first image is the set's number ``start``."""
        for sums, curve in scored:
            self._tiles.append(
                (start, sums.columns(), {stop: total.cpu() for stop, total in curve.items()})
            )

    def gather(self, group: Alone) -> None:
        """The tiles of all processes, in the images' order: sums then have the bits that one
        process gives them.
        """
        self._tiles = sorted(
            chain.from_iterable(group.gather(self._tiles)), key=lambda tile: tile[0]
        )

    def figures(self) -> dict[str, Any]:
        """Those of all images, under the names of `LogMarginal`."""
        _, columns, curves = zip(*self._tiles, strict=True)
        log_px, elbo_px, variance, ess, max_share, debiased, khat = torch.cat(columns, dim=1)
        refuse_nan(log_px)
        totals = {
            stop: float(sum(curve[stop] for curve in curves)) for stop in stops(self.num_samples)
        }
        return {
            "log_px": log_px,
            "se": variance.sqrt(),
            "ess": ess,
            "khat": khat,
            "elbo_px": elbo_px,
            "max_weight_share": max_share,
            "debiased_px": debiased,
            "curve": {k: total / len(log_px) for k, total in totals.items()},
        }


def refuse_nan(log_px: Tensor) -> None:
    """A ``UserError`` for the first image whose estimate is NaN."""
    if bool(log_px.isnan().any()):
        raise UserError(
            f"image {int(log_px.isnan().nonzero()[0])}: its log weights hold a NaN: look for NaN "
            "in the model's parameters, or a refined guide given other images"
        )


def _words(proposal: Proposal) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in vars(proposal).items())
    return type(proposal).__name__.lower() + (f"({settings})" if settings else "")


def _refuse(pair: Pair, source: Source, first: Batch, proposal: Proposal) -> Structure:
    """What the pair's programs look like, where log p(x) can be had from them."""
    if isinstance(source, Resident):
        dry_run.check_fields(pair, source.fields)
    structure = pair.structure(pair.cast(first[0]), first[1])
    proposal.check(structure)
    if isinstance(source, Resident):
        dry_run.check_support_of_set(pair, source.num_images, source.part)
    return structure


def mode_notes(pair: Pair) -> tuple[str, ...]:
    names = sorted(
        {type(m).__name__ for m in pair.modules if m.training and isinstance(m, _MODE_DEPENDENT)}
    )
    return (
        (
            f"{', '.join(names)} in train mode: evaluated in eval mode, as images must not depend "
            "on each other",
        )
        if names
        else ()
    )
