"""The scorer: K draws at each image, tile by tile, within memory, with noise that depends on the
image's row.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from pyro_vae.errors import UserError, first_line
from pyro_vae.evaluation.tiling import padded, stops, tile_sizes
from pyro_vae.evaluation.traced import Draw, Weights
from pyro_vae.evaluation.weight_sums import Curve, ImageSums, WeightSums, pareto_khat, tail_length
from pyro_vae.memory import is_out_of_memory
from pyro_vae.pair.nodes import taken
from pyro_vae.pair.runtime import Pair
from pyro_vae.rng import mix, set_generators
from pyro_vae.tensors import slices

HELD = 16
"""Chunks of log weights that are summed up together, as each sum costs some forty small operations.
"""

Make = Callable[[int, int], tuple[Weights, str]]
"""(chunk, tile) -> the source of log weights for tiles of so many images by so many draws, and how
it is run.
"""

Result = TypeVar("Result")
Fields = Mapping[str, Tensor]


@dataclass
class Scorer:
    """Scores tiles of images; where the device's memory is too small for one run of the model, the
    next ones are half as large.
    """

    pair: Pair
    make: Make
    rows: int  # draws times images of one run of the model
    most_images: int
    num_samples: int
    seed: int
    strata: tuple[float, ...] = (1.0,)
    exact: bool = False  # every weight of an image is its p(x)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.how, self._stale = "", True
        self._within_memory(lambda: None)

    def score(self, start: int, images: Tensor, fields: Fields) -> list[tuple[ImageSums, Curve]]:
        """The figures of these images, the first of which is the set's number ``start``."""
        return self._within_memory(lambda: self._score(start, images, fields))

    def _score(self, start: int, images: Tensor, fields: Fields) -> list[tuple[ImageSums, Curve]]:
        scored = []
        for rows in slices(len(images), self.tile):
            draw, number = self._draw(*taken(images, fields, rows)), rows.stop - rows.start
            # its own seed: the numbers are the same however the tiles are shared out among
            # processes
            set_generators(mix(self.seed, start + rows.start), images.device)
            if self.exact:
                scored.append(_exact(draw, number, self.num_samples))
            else:
                sizes = number, self.num_samples, self.chunk
                scored.append(_stream(draw, images.device, *sizes, self.strata))
        return scored

    def _draw(self, images: Tensor, fields: Fields) -> Draw:
        return self.weights(*padded(images, dict(fields), self.tile, self.pair))

    def _build(self) -> None:
        chunk, tile = (1, self.rows) if self.exact else tile_sizes(self.num_samples, self.rows)
        self.chunk, self.tile = chunk, min(tile, self.most_images)
        self.weights, self.how = self.make(self.chunk, self.tile)
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


def _stream(
    draw: Draw,
    place: torch.device,
    num_images: int,
    num_samples: int,
    chunk: int,
    strata: tuple[float, ...],
) -> tuple[ImageSums, Curve]:
    """All K draws of one tile of images, in chunks; rows that only fill the tile are dropped."""
    sums, curve = WeightSums(num_images, num_samples, place, strata), {}
    sizes = _sizes(num_samples, chunk)
    for first in range(0, len(sizes), HELD):
        chunks = [draw(size)[:, :num_images] for size in sizes[first : first + HELD]]
        ends = list(accumulate(map(len, chunks), initial=sums.seen))
        for stop in stops(num_samples):
            if stop in ends[1:]:
                curve[stop] = sums.log_mean(*chunks[: ends.index(stop)]).sum()
        sums.add(*chunks)
    return sums.finish(), curve


def _sizes(num_samples: int, chunk: int) -> list[int]:
    """K draws in chunks, one of which ends at each stop of the curve."""
    edges = [0, *stops(num_samples)]
    return [
        min(chunk, end - done)
        for start, end in pairwise(edges)
        for done in range(start, end, chunk)
    ]


def _exact(draw: Draw, num_images: int, num_samples: int) -> tuple[ImageSums, Curve]:
    """All K weights of an image are log p(x) itself."""
    log_px = draw(1)[0, :num_images].double()
    none, draws = torch.zeros_like(log_px), torch.full_like(log_px, num_samples)
    khat = pareto_khat(log_px.expand(tail_length(num_samples) + 1, -1), none)
    sums = ImageSums(log_px, log_px, none, draws, 1.0 / draws, log_px, khat)
    return sums, {stop: log_px.sum() for stop in stops(num_samples)}
