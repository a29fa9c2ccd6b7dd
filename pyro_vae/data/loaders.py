"""Batches: from a tensor on the device, or from a Dataset or DataLoader that streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
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

from pyro_vae.data.batches import Batch, Hosted, Part, Resident, Source, Whole, bounds_of
from pyro_vae.errors import UserError, first_line
from pyro_vae.fields import as_fields, constants, has_rows, merged
from pyro_vae.rng import mix, permutation
from pyro_vae.tensors import as_images, as_tensor

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
        return len(bounds_of(self.num_images, self.batch_size, self.part))

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
        bounds = bounds_of(self.num_images, self.batch_size, self.part)
        yield from self._indexed([order[rows] for rows in bounds[skip:]])

    def in_order(self) -> Iterator[Batch]:
        """One pass in order, in batches of ``batch_size``, whatever those of a DataLoader are: the
        noise of an evaluation goes by batch.
        """
        if self._given is not None:
            yield from _regrouped(self._passed(self._given), self.batch_size)
            return
        every = range(self.num_images)
        batches = [list(every[rows]) for rows in bounds_of(self.num_images, self.batch_size)]
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
    there = 0  # rows in them, counted on: a loader may give them one by one
    for batch in batches:
        held.append(batch)
        there += len(batch[0])
        while there >= size:
            taken, rest = _divided(held, size)
            yield taken
            held, there = [rest], there - size
    if there:
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
