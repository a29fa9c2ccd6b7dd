"""Where batches come from: a tensor that lies on the device, or a Dataset or DataLoader that
streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_vae.errors import UserError
from pyro_vae.fields import as_fields, constants, merged
from pyro_vae.rng import mix
from pyro_vae.tensors import as_images

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

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Batches in one pass."""

    @abstractmethod
    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass in the order that (seed, epoch) alone decide, less its first ``skip`` batches."""

    @abstractmethod
    def in_order(self) -> Iterator[Batch]:
        """One pass in the set's own order."""

    def images(self, batch: Batch) -> Batch:
        """The images and fields of one of its batches."""
        return batch

    def drawn(self, seed: int) -> Batch:
        """A batch of rows drawn with replacement from the whole set; a DataLoader's next one, which
        may be any.
        """
        return next(self.shuffled(seed, 1))

    def _drawn_rows(self, seed: int) -> Tensor:
        size = min(self.batch_size, self.num_images)
        generator = torch.Generator().manual_seed(mix(seed, 2))
        return torch.randint(self.num_images, (size,), generator=generator)


GATHERED = 2**20
"""Bytes of images that one gather brings together: several small batches, which then are slices of
what lies in the cache.
"""


class Resident(Source):
    """The whole set as tensors on the device: a gather serves one batch or more, and nothing else
    crosses the bus.
    """

    def __init__(
        self,
        x: Tensor,
        fields: Mapping[str, Tensor],
        batch_size: int,
        device: torch.device,
        part: Part = (0, 1),
    ) -> None:
        self.x = x.to(device)
        self.fields = {name: value.to(device) for name, value in fields.items()}
        self._rows_are_index = "index" not in fields
        self.fields.setdefault("index", torch.arange(len(x), device=device))
        self.batch_size, self.num_images = batch_size, len(x)
        self._together = max(1, GATHERED // max(1, batch_size * self.x[0].nbytes))
        self._bounds = _bounds(len(x), batch_size, part)

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
        # a CPU generator: the same order on every device
        order = torch.randperm(
            self.num_images, generator=torch.Generator().manual_seed(mix(seed, epoch))
        )
        return order.to(self.x.device)

    def in_order(self) -> Iterator[Batch]:
        """One pass, slices without a copy."""
        for start in range(0, self.num_images, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.x[rows], {name: value[rows] for name, value in self.fields.items()}

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


class Streamed(Source):
    """A torch Dataset or DataLoader: items are x, (x, y) or a dict with ``x`` and named fields."""

    def __init__(
        self,
        data: Any,
        batch_size: int,
        device: torch.device,
        part: Part = (0, 1),
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.device, self.part, self.constants = device, part, constants(fields or {})
        if rows := sorted(merged(fields or {}).keys() - self.constants.keys()):
            raise UserError(
                f"fields ({', '.join(rows)}) can't be given beside a Dataset: let its items be "
                "dicts that hold them"
            )
        self._given = data if isinstance(data, DataLoader) else None
        self.dataset = data.dataset if isinstance(data, DataLoader) else data
        if not hasattr(self.dataset, "__len__"):
            raise UserError(
                f"{type(self.dataset).__name__} has no length: give a Dataset with __len__ and "
                "__getitem__"
            )
        self.num_images = len(self.dataset)
        self.own_order = self._given is not None
        self.batch_size = (
            self._given.batch_size or batch_size if self._given is not None else batch_size
        )
        if not self.num_images:
            raise UserError("the data set is empty: expected at least one image")
        if self.own_order and part[1] > 1:
            raise UserError(
                "a DataLoader has an order of its own, which several processes can't divide: give "
                "its Dataset instead"
            )

    @property
    def num_batches(self) -> int:
        """Batches in one pass."""
        return len(self._given) if self._given is not None else len(self._bounds())

    def _bounds(self) -> list[slice]:
        return _bounds(self.num_images, self.batch_size, self.part)

    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass; a DataLoader keeps its own order, a Dataset is shuffled by (seed, epoch)."""
        if self._given is not None:
            yield from map(self._unpack, islice(self._given, skip, None))
            return
        generator = torch.Generator().manual_seed(mix(seed, epoch))
        order = torch.randperm(self.num_images, generator=generator).tolist()
        yield from self._indexed([order[rows] for rows in self._bounds()[skip:]], generator)

    def in_order(self) -> Iterator[Batch]:
        """One pass in order."""
        if self._given is not None:
            yield from map(self._unpack, self._given)
            return
        every = range(self.num_images)
        batches = [list(every[rows]) for rows in _bounds(self.num_images, self.batch_size)]
        yield from self._indexed(batches, torch.Generator().manual_seed(0))

    def drawn(self, seed: int) -> Batch:
        """As a set of tensors draws it."""
        if self._given is not None:
            return super().drawn(seed)
        return next(
            self._indexed([self._drawn_rows(seed).tolist()], torch.Generator().manual_seed(0))
        )

    def _indexed(self, batches: list[list[int]], generator: torch.Generator) -> Iterator[Batch]:
        # a generator of its own, as a DataLoader takes its workers' seed from the global one: the
        # noise is that of tensors
        loader = DataLoader(self.dataset, batch_sampler=batches, generator=generator)
        for rows, items in zip(batches, loader, strict=True):
            x, fields = self._unpack(items)
            yield x, {**fields, "index": torch.tensor(rows, device=self.device)}

    def _unpack(self, items: Any) -> Batch:
        if isinstance(items, Tensor):
            items = {"x": items}
        elif isinstance(items, list | tuple) and len(items) in (1, 2):
            items = dict(zip(("x", "y"), items, strict=False))
        if not isinstance(items, dict) or not isinstance(items.get("x"), Tensor):
            raise UserError(
                f"a batch of {type(self.dataset).__name__} is a {type(items).__name__}: expected "
                "x, (x, y), or a dict with 'x' and named fields, all tensors"
            )
        x = items["x"].to(self.device)
        fields = {name: value for name, value in items.items() if name != "x"}
        given = as_fields({**self.constants, **fields}, len(x))
        return x, {name: value.to(self.device) for name, value in given.items()}


def make_source(
    data: Any,
    fields: Mapping[str, Any],
    batch_size: int,
    device: torch.device,
    what: str = "x",
    part: Part = (0, 1),
) -> Source:
    """The source for a tensor, an array, or a Dataset or DataLoader; a ``UserError`` names what is
    wrong with it.
    """
    if isinstance(data, DataLoader | Dataset):
        return Streamed(data, batch_size, device, part, fields)
    x = as_images(data, what)
    return Resident(x, as_fields(fields, len(x)), batch_size, device, part)


def _bounds(num_images: int, batch_size: int, part: Part = (0, 1)) -> list[slice]:
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
