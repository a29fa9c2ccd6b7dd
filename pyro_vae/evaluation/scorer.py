"""The scorer: K draws at each image, tile by tile, within memory, with noise that depends on the
image's row.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from pyro_vae.errors import UserError, first_line
from pyro_vae.evaluation.precision import Precision
from pyro_vae.evaluation.proposals import Proposal
from pyro_vae.evaluation.setup import Setup
from pyro_vae.evaluation.tiling import padded, stops, tile_sizes
from pyro_vae.evaluation.traced import Draw, make_weights
from pyro_vae.evaluation.weight_sums import Curve, Figures, WeightSums, pareto_khat, tail_length
from pyro_vae.memory import is_out_of_memory
from pyro_vae.pair.nodes import Fields, taken
from pyro_vae.rng import mix, set_generators
from pyro_vae.tensors import slices

HELD = 16
"""Chunks of log weights that are summed up together, as each sum costs some forty small operations.
"""

Result = TypeVar("Result")


class Scorer:
    """K draws of a proposal at every image of a set; where the device's memory is too small for one
    run of the model, the next ones are half as large.

    Attributes:
        how: it runs.
        exact: whether every weight of an image is its p(x).
        notes: what is to be said of the memory.
    """

    how: str
    tile: int  # images of one run of the model
    chunk: int  # draws of one run

    def __init__(
        self, setup: Setup, proposal: Proposal, num_samples: int, tier: str, precision: Precision
    ) -> None:
        self.setup, self.proposal, self.num_samples = setup, proposal, num_samples
        self.tier, self.precision, self.notes, self._stale = tier, precision, list[str](), True
        structure, source = setup.structure, setup.source
        precision.check(setup.pair.dtype or setup.first[0].dtype, setup.place)
        self.exact = proposal.is_exact(structure)
        # each value of a site that is summed over is a row of the model as well
        values = (*structure.summed.values(), *structure.enumerated.values())
        self.rows = max(1, setup.rows // prod(values))  # draws times images of one run
        source.batch_size = self.rows if self.exact else tile_sizes(num_samples, self.rows)[1]
        self._within_memory(lambda: None)

    def score(self, start: int, images: Tensor, fields: Fields) -> list[tuple[Figures, Curve]]:
        """The figures of these images, the first of which is the set's number ``start``."""
        return self._within_memory(lambda: self._score(start, images, fields))

    def _score(self, start: int, images: Tensor, fields: Fields) -> list[tuple[Figures, Curve]]:
        scored = []
        for first, draw, number in self._tiles(images, fields):
            # its own seed: the numbers are the same however the tiles are shared out among
            # processes
            set_generators(mix(self.setup.seed, start + first), images.device)
            found = _exact if self.exact else self._stream
            scored.append(found(draw, number, self.num_samples))
        return scored

    def _tiles(self, images: Tensor, fields: Fields) -> Iterator[tuple[int, Draw, int]]:
        """The first image of each tile, its draws, and how many of its images are no padding."""
        for rows in slices(len(images), self.tile):
            tile = padded(*taken(images, fields, rows), self.tile, self.setup.pair)
            yield rows.start, self.weights(*tile), rows.stop - rows.start

    def _stream(self, draw: Draw, num_images: int, num_samples: int) -> tuple[Figures, Curve]:
        """All K draws of one tile of images, in chunks; rows that only fill the tile are dropped."""
        strata, curve = self.proposal.strata, {}
        sums = WeightSums(num_images, num_samples, self.setup.place, strata)
        sizes = _sizes(num_samples, self.chunk)
        for first in range(0, len(sizes), HELD):
            chunks = [draw(size)[:, :num_images] for size in sizes[first : first + HELD]]
            ends = list(accumulate(map(len, chunks), initial=sums.seen))
            for stop in stops(num_samples):
                if stop in ends[1:]:
                    curve[stop] = sums.log_mean(*chunks[: ends.index(stop)]).sum()
            sums.add(*chunks)
        return sums.finish(), curve

    def _build(self) -> None:
        chunk, tile = (1, self.rows) if self.exact else tile_sizes(self.num_samples, self.rows)
        setup, number = self.setup, self.setup.source.num_images
        self.chunk, self.tile = chunk, min(tile, number)
        work, tiles = (number, self.num_samples, chunk), setup.tiles(self.tile)
        self.weights, self.how = make_weights(
            setup.pair, self.proposal, self.tier, *work, *tiles, self.precision
        )
        self._stale = False

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        while True:
            try:
                if self._stale:
                    self._build()
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise UserError(
                        "one image and one draw of this model don't fit into the memory: use "
                        f"another device or a smaller model ({first_line(error)})"
                    ) from error
            # outside the handler, whose traceback keeps the tensors of the run that failed
            self._halve()

    def _halve(self) -> None:
        before, self.rows, self._stale = self.rows, self.rows // 2, True
        said = f"out of memory with {before} rows (draws times images) at once"
        first = self.notes[0].partition(", ")[0] if self.notes else said
        self.notes[:] = [f"{first}, continued with {self.rows}"]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _sizes(num_samples: int, chunk: int) -> list[int]:
    """K draws in chunks, one of which ends at each stop of the curve."""
    edges = [0, *stops(num_samples)]
    return [
        min(chunk, end - done)
        for start, end in pairwise(edges)
        for done in range(start, end, chunk)
    ]


def _exact(draw: Draw, num_images: int, num_samples: int) -> tuple[Figures, Curve]:
    """All K weights of an image are log p(x) itself."""
    log_px = draw(1)[0, :num_images].double()
    none, draws = torch.zeros_like(log_px), torch.full_like(log_px, num_samples)
    found = dict.fromkeys(("log_px", "elbo_px", "debiased_px"), log_px)
    found |= {"se": none, "ess": draws, "max_weight_share": 1.0 / draws}
    found["khat"] = pareto_khat(log_px.expand(tail_length(num_samples) + 1, -1), none)
    return found, {stop: log_px.sum() for stop in stops(num_samples)}
