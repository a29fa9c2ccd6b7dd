"""Batches: from a tensor on the device, or from a Dataset or DataLoader that streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from pyro_vae.errors import UserError, first_line
from pyro_vae.fields import as_fields, constants, has_rows, merged
from pyro_vae.rng import mix, permutation
from pyro_vae.tensors import as_images, as_tensor

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
        return permutation(self.num_images, mix(seed, epoch)).to(self.x.device)

    def in_order(self) -> Iterator[Batch]:
        """One pass, slices without a copy."""
        for start in range(0, self.num_images, self.batch_size):
            yield self.part(slice(start, start + self.batch_size))

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


ROOM = 0.7
"""The part of a device's free memory that a data set may take."""


def has_room(x: Tensor, device: torch.device) -> bool:
    """Whether the device has memory for all of the images besides the work on them."""
    if device.type != "cuda" or x.device == device:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return x.nbytes <= ROOM * free


class Streamed(Source):
    """A torch Dataset or DataLoader: items are x, (x, y) or a dict with ``x`` and named fields.

    ``num_images`` is what the DataLoader's sampler announces; an evaluation counts what came.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        device: torch.device,
        part: Part = (0, 1),
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(data, IterableDataset) and hasattr(data, "__len__"):
            data = DataLoader(data, batch_size)
        self.device, self.part, self.constants = device, part, constants(fields or {})
        if rows := sorted(merged(fields or {}).keys() - self.constants.keys()):
            raise UserError(
                f"fields ({', '.join(rows)}) can't be given together with a Dataset: let its "
                "items be dicts with these fields"
            )
        self._given = data if isinstance(data, DataLoader) else None
        self.dataset = data.dataset if isinstance(data, DataLoader) else data
        self._name = type(self.dataset).__name__
        if not hasattr(self.dataset, "__len__"):
            raise UserError(
                f"{self._name} has no length: give a Dataset with __len__ and __getitem__"
            )
        self.own_order = self._given is not None
        self.batch_size, self.num_images = batch_size, len(self.dataset)
        if self._given is not None:
            _refuse_single_images(self._given)
            self.batch_size = self._given.batch_size or batch_size
            if not isinstance(self.dataset, IterableDataset) and self._given.batch_size:
                self.num_images = len(cast(Sized, self._given.sampler))
        if not len(cast(Sized, self.dataset)):
            raise UserError("the data set is empty: expected at least one image")
        if self.own_order and part[1] > 1:
            raise UserError(
                "a DataLoader can't be divided among several processes, because it has its own "
                "order: give its Dataset instead"
            )

    @property
    def num_batches(self) -> int:
        """Batches in one pass."""
        if self._given is not None:
            return len(self._given)
        return len(_bounds(self.num_images, self.batch_size, self.part))

    def counted(self, number: int) -> tuple[str, ...]:
        """A note where this is not the number of images in the set.

        Raises:
            UserError: it is more than there are, so that some came twice.
        """
        there = len(cast(Sized, self.dataset))
        if number > there and not isinstance(self.dataset, IterableDataset):
            raise UserError(
                f"the DataLoader gave {number} images of {self._name}, which has {there}. Some "
                "images came twice, so that no error bar would be right: give the Dataset"
            )
        if number == there:
            return ()
        return (f"{number} images came from the loader, but {self._name} has {there}",)

    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass; a DataLoader keeps its own order, a Dataset is shuffled by (seed, epoch)."""
        if self._given is not None:
            yield from islice(self._passed(self._given), skip, None)
            return
        order = permutation(self.num_images, mix(seed, epoch)).tolist()
        bounds = _bounds(self.num_images, self.batch_size, self.part)
        yield from self._indexed([order[rows] for rows in bounds[skip:]])

    def in_order(self) -> Iterator[Batch]:
        """One pass in order, in batches of ``batch_size``, whatever those of a DataLoader are: the
        noise of an evaluation goes by batch.
        """
        if self._given is not None:
            yield from _regrouped(self._passed(self._given), self.batch_size)
            return
        every = range(self.num_images)
        batches = [list(every[rows]) for rows in _bounds(self.num_images, self.batch_size)]
        yield from self._indexed(batches)

    def drawn(self, seed: int) -> Batch:
        """As a set of tensors draws it."""
        if self._given is not None:
            return super().drawn(seed)
        return next(self._indexed([self._drawn_rows(seed).tolist()]))

    def _indexed(self, batches: list[list[int]]) -> Iterator[Batch]:
        if not batches:  # of a pass that is done already
            return
        # a generator of its own, as a DataLoader takes its workers' seed from the global one: the
        # noise is that of tensors
        generator = torch.Generator().manual_seed(0)
        pinned = self.device.type == "cuda"  # from which a copy does not make the host wait
        loader = DataLoader(
            self.dataset, batch_sampler=batches, generator=generator, pin_memory=pinned
        )
        for rows, (x, fields) in zip(batches, self._passed(loader), strict=True):
            yield x, {**fields, "index": torch.tensor(rows, device=self.device)}

    def _passed(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        """The batches of one pass; a ``UserError`` where there is none, or items that make none."""
        number, batches = 0, iter(loader)
        while True:
            try:
                items = next(batches)
            except StopIteration:
                break
            except (TypeError, RuntimeError) as error:
                if not any(words in str(error) for words in UNCOLLATED):
                    raise
                raise UserError(
                    f"items of {self._name} can't be put into one batch ({first_line(error)}): "
                    "let each item be a tensor or number, (x, y), or a dict of these, all "
                    "images of one shape"
                ) from error
            yield self._unpack(items)
            number += 1
        if not number:
            raise UserError(
                f"the DataLoader of {self._name} gave no batch: look at its sampler and drop_last"
            )

    def _unpack(self, items: Any) -> Batch:
        """A batch on the device; what is no numbers (a file's name) is left out, as no program
        could take it.
        """
        if isinstance(items, Tensor | np.ndarray):
            items = {"x": items}
        elif isinstance(items, list | tuple) and len(items) in (1, 2):
            items = dict(zip(("x", "y"), items, strict=False))
        if not isinstance(items, Mapping) or not isinstance(items.get("x"), Tensor | np.ndarray):
            found = type(items.get("x") if isinstance(items, Mapping) else items).__name__
            raise UserError(
                f"a batch of {self._name} has a {found} as x: expected x, (x, y), or a dict "
                "with 'x' and named fields, all tensors"
            )
        x = as_tensor(items["x"], "x").to(self.device, non_blocking=True)
        fields = {n: v for n, v in items.items() if n != "x" and has_rows(v)}
        try:
            given = as_fields({**self.constants, **fields}, len(x))
        except UserError as error:
            raise UserError(f"a batch of {self._name}: {error}") from None
        return x, {n: v.to(self.device, non_blocking=True) for n, v in given.items()}


def _regrouped(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows in batches of ``size``; the last may be smaller."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        while sum(len(x) for x, _ in held) >= size:
            taken, rest = _divided(held, size)
            yield taken
            held = [rest]
    if any(len(x) for x, _ in held):
        yield _divided(held, size)[0]


def _divided(batches: list[Batch], size: int) -> tuple[Batch, Batch]:
    """The first ``size`` rows, and the others."""
    x = torch.cat([batch[0] for batch in batches])
    fields = {name: torch.cat([batch[1][name] for batch in batches]) for name in batches[-1][1]}
    first, rest = slice(size), slice(size, None)
    taken = x[first], {name: value[first] for name, value in fields.items()}
    return taken, (x[rest], {name: value[rest] for name, value in fields.items()})


UNCOLLATED = ("default_collate", "stack expects each tensor to be equal size")
"""What torch says of items that can't be put together."""


def _refuse_single_images(loader: DataLoader[Any]) -> None:
    """``batch_size=None`` over a set of single images; a sampler of lists, or a set that is
    iterated, may give batches.
    """
    single = isinstance(loader.sampler, SequentialSampler | RandomSampler)
    if loader.batch_sampler is None and single:
        raise UserError(
            "the DataLoader gives single images, because its batch_size is None: give it a "
            "batch_size"
        )


def refuse_repeats(data: Any) -> None:
    """A ``UserError`` for a DataLoader that draws with replacement: an estimate would take the
    duplicates for independent images.
    """
    if isinstance(data, DataLoader) and getattr(data.sampler, "replacement", False):
        raise UserError(
            f"the DataLoader's {type(data.sampler).__name__} draws images with replacement, so "
            "that no error bar would be right: give the Dataset, or a loader without "
            "replacement"
        )


def make_source(
    data: Any,
    fields: Mapping[str, Any],
    batch_size: int | None,
    device: torch.device,
    what: str = "x",
    part: Part = (0, 1),
    *,
    missing: bool = True,
) -> Source:
    """The source for a tensor, an array, or a Dataset or DataLoader; a ``UserError`` names what is
    wrong with it.

    Args:
        missing: whether a NaN may mark what is missing, which the programs then are to be checked
            for.
    """
    streamed = isinstance(data, DataLoader | Dataset)
    if batch_size is None and (streamed or part[1] > 1):
        raise UserError(
            "batch_size=None, all rows at once, takes a tensor or array and one process: give a number"
        )
    if streamed:
        return Streamed(data, cast(int, batch_size), device, part, fields)
    x = as_images(data, what, missing=missing)
    source = Whole if batch_size is None else Resident if has_room(x, device) else Hosted
    return source(x, as_fields(fields, len(x)), batch_size or len(x), device, part)


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
