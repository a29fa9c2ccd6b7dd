"""Tile sizes of an evaluation: how many draws and images the model sees at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil, gcd

import torch
from torch import Tensor

from pyro_vae.data.batches import Batch, Source
from pyro_vae.pair.nodes import taken
from pyro_vae.pair.runtime import Pair
from pyro_vae.progress import progress_bar
from pyro_vae.protocols import hook
from pyro_vae.tensors import slices

ROWS = {"cpu": 2000, "cuda": 200_000}
"""Rows (draws times images) of one run of the model: enough to fill the machine, small enough for
its cache.
"""

OUTPUTS = 8
"""Decoder outputs a pixel from which rows are wider than those that `ROWS` was measured with (a
Categorical has 256).
"""


def rows_of(pair: Pair, place: torch.device) -> int:
    """`ROWS` on this device, fewer where a likelihood of the model has many decoder outputs for
    each pixel.
    """
    widest = max((hook(module, "per_pixel") for module in pair.modules), default=1)
    return ROWS.get(place.type, ROWS["cpu"]) // max(1, widest // OUTPUTS)


def tile_sizes(num_samples: int, rows: int) -> tuple[int, int]:
    """Draws and images of one run of the model: about ``rows`` together, the draws dividing the
    curve's stops evenly.
    """
    common = gcd(*stops(num_samples))
    fits = [n for n in range(1, min(common, rows) + 1) if common % n == 0]
    chunk = fits[-1] if fits[-1] >= min(num_samples, rows) // 16 else min(num_samples, rows)
    return chunk, max(1, rows // chunk)


def even_tiles(num_images: int, num_draws: int, rows: int) -> int:
    """Images of one tile: draws times images at most about ``rows``, the tiles of nearly equal
    size.
    """
    fit = max(1, rows // num_draws)
    return ceil(num_images / ceil(num_images / fit))


def padded(
    x: Tensor, fields: Mapping[str, Tensor], tile: int, pair: Pair
) -> tuple[Tensor, dict[str, Tensor]]:
    """A tile of exactly ``tile`` images, the first ones again where there are fewer: one shape, one
    program.
    """
    rows, named = taken(x, fields, torch.arange(tile) % len(x))
    return pair.cast(rows), named


def tiled(
    source: Source, tile: int, shown: bool, seen: Callable[[Batch], bool] = lambda batch: True
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """All images in order, at most ``tile`` at a time, each time with the number of the first one.

    ``seen`` is shown every batch of the source, and says whether its images are to be given.
    """
    done = 0
    with progress_bar(source.num_images, "image", shown) as bar:
        for images, named in source.in_order():
            for rows in slices(len(images), tile) if seen((images, named)) else ():
                yield done + rows.start, *taken(images, named, rows)
            bar.update(len(images))
            done += len(images)


def stops(num_samples: int) -> list[int]:
    """The k at which the curve is read: K/10, K/2, K."""
    return sorted({max(1, num_samples // 10), max(1, num_samples // 2), num_samples})
