"""Batches of a set of tensors, on the device or in the host's memory; and what every source of
batches has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.rng import mix, permutation

Batch = tuple[Tensor, dict[str, Tensor]]


Part = tuple[int, int]
"""(r, R): of the rows of each shuffled batch of R·B, those that process r of R takes; all take as
many.
"""


class Source(ABC):
    """Batches ``(x, fields)`` on one device; ``index``, the row in the set, is one of the fields
    where it is known.
    """

    batch_size: int
    num_images: int
    # whether the order is one that (seed, epoch) do not decide, so that no pass can be repeated
    own_order = False
    # whether a batch is the whole set, in its own order
    whole = False
    # what the user is told about where the images are, where that is unusual
    note = ""

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Batches in one pass."""

    @abstractmethod
    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass, its order given by (seed, epoch), without its first ``skip`` batches."""

    @abstractmethod
    def in_order(self) -> Iterator[Batch]:
        """One pass in the set's own order."""

    def images(self, batch: Batch) -> Batch:
        """The images and fields of one of its batches."""
        return batch

    def counted(self, number: int) -> tuple[str, ...]:
        """What is to be said where a pass gave this number of images."""
        return ()

    def drawn(self, seed: int) -> Batch:
        """A batch of rows drawn with replacement from the whole set; a DataLoader's next one, which
        may be any.
        """
        return next(self.shuffled(seed, 1))

    def _drawn_rows(self, seed: int) -> Tensor:
        size = min(self.batch_size, self.num_images)
        generator = torch.Generator().manual_seed(mix(seed, 2))
        return torch.randint(self.num_images, (size,), generator=generator, device="cpu")


GATHERED = 2**20
"""Bytes of images that one gather brings together: several small batches, which then are slices of
what is in the cache.
"""


class Resident(Source):
    """The whole set as tensors on the device: a gather serves one batch or more, and nothing else
    crosses the bus.
    """

    kept_on: torch.device | None = None  # where the set is, if not on the device

    def __init__(
        self,
        x: Tensor,
        fields: Mapping[str, Tensor],
        batch_size: int,
        device: torch.device,
        part: Part = (0, 1),
    ) -> None:
        place = self.kept_on or device
        self.device, self.x = device, x.to(place)
        self.fields = {name: value.to(place) for name, value in fields.items()}
        self._rows_are_index = "index" not in fields
        self.fields.setdefault("index", torch.arange(len(x), device=place))
        self.batch_size, self.num_images = batch_size, len(x)
        self._together = max(1, GATHERED // max(1, batch_size * self.x[0].nbytes))
        self._bounds = bounds_of(len(x), batch_size, part)

    @property
    def num_batches(self) -> int:
        """Batches in one pass; the last may be smaller, or larger by one."""
        return len(self._bounds)

    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass by a permutation from a generator of its own."""
        order, bounds = self._order(seed, epoch), self._bounds[skip:]
        for first in range(0, len(bounds), self._together):
            several = bounds[first : first + self._together]
            sizes = [len(range(self.num_images)[rows]) for rows in several]
            x, fields = self.take(order[several[0].start : several[-1].stop : several[0].step])
            split = {name: value.split(sizes) for name, value in fields.items()}
            for number, batch in enumerate(x.split(sizes)):
                yield batch, {name: parts[number] for name, parts in split.items()}

    def rows(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        """The rows of each batch of such a pass, ``(B,)``."""
        order = self._order(seed, epoch)
        for rows in self._bounds[skip:]:
            yield order[rows]

    def _order(self, seed: int, epoch: int) -> Tensor:
        return permutation(self.num_images, mix(seed, epoch)).to(self.x.device)

    def in_order(self) -> Iterator[Batch]:
        """One pass, slices without a copy."""
        for start in range(0, self.num_images, self.batch_size):
            yield self.part(slice(start, start + self.batch_size))

    def everything(self) -> Batch:
        """All rows as one batch, without a copy."""
        return self.x, self.fields

    def part(self, rows: slice) -> Batch:
        """The images and fields of these rows, without a copy."""
        return self.x[rows], {name: value[rows] for name, value in self.fields.items()}

    def drawn(self, seed: int) -> Batch:
        """A batch of rows drawn with replacement from the whole set."""
        return self.take(self._drawn_rows(seed).to(self.x.device))

    def take(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        own = {"index": rows} if self._rows_are_index else {}
        fields = {
            n: own[n] if n in own else v.index_select(0, rows) for n, v in self.fields.items()
        }
        return self.x.index_select(0, rows), fields


class Whole(Resident):
    """All rows in each batch, in their own order: what ``SVI.step(x)`` is given."""

    whole = True

    def _order(self, seed: int, epoch: int) -> Tensor:
        return torch.arange(self.num_images, device=self.x.device)


class Hosted(Resident):
    """The whole set in the host's memory, where the device's does not have room: the batches are
    those of `Resident`, and each gather crosses the bus.
    """

    note = "the images stay in the host's memory, because they don't all fit on the device"

    kept_on = torch.device("cpu")

    def part(self, rows: slice) -> Batch:
        """The images and fields of these rows, moved."""
        return self._moved(super().part(rows))

    def take(self, rows: Tensor) -> Batch:
        """The batch of these rows, gathered by the host."""
        return self._moved(super().take(rows.cpu()))

    def _moved(self, batch: Batch) -> Batch:
        x, fields = batch
        moved = {name: self._move(value) for name, value in fields.items()}
        return self._move(x), moved

    def _move(self, tensor: Tensor) -> Tensor:
        # from pinned memory the copy does not make the host wait
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)


def bounds_of(num_images: int, batch_size: int, part: Part = (0, 1)) -> list[slice]:
    """The batches in a pass's order; a last batch of a single image joins the one before (BatchNorm
    can't serve one image).

    R processes take R·B images at a time, process r those at r, r + R, …; so many as R does not
    divide are left out.
    """
    number, size = part
    if num_images < size:
        raise UserError(f"{num_images} images can't be divided among {size} processes: start fewer")
    mine = num_images // size
    starts = [*range(0, mine, batch_size), mine]
    if len(starts) > 2 and batch_size > 1 and starts[-1] - starts[-2] == 1:
        del starts[-2]
    return [slice(size * start + number, size * end, size) for start, end in pairwise(starts)]
