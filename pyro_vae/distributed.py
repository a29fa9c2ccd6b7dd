"""Several processes (torchrun): how they divide work, add up results, and agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_vae import torchrun
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError
from pyro_vae.rng import mix, set_generators
from pyro_vae.signals import Failure

Result = TypeVar("Result")

LONGEST_WAIT = timedelta(days=1)
"""For small values: a process may wait for another's whole evaluation. Over gloo one that dies is
noticed at once.
"""

STEP_WAIT = timedelta(minutes=15)
"""For gradients: over NCCL the others of a process that died notice it by this time alone. It
covers a compiler's time, and a checkpoint's.
"""

_of_small_values: Any = None


_groups = count(1)


class Lost(Failure):
    """Another process of the group is gone."""

    of_another = True


class Alone:
    """One process: the first and only one. What several do together, it does by doing nothing."""

    rank, size = 0, 1
    reduce: Callable[[Sequence[Tensor], Tensor], None] | None = None
    """Between backward and update: averages the gradients, adds up the figures; None where there is
    nothing to do.
    """

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def seed_of(self, seed: int) -> int:
        """This process's own seed, out of one that all have."""
        return seed

    def begin_step(self, seed: int, step: int, device: torch.device) -> None:
        """Before a training step's noise is drawn, where there are several."""

    def share(self, batches: Iterator[Result]) -> Iterator[Result]:
        """One in ``size`` of them, the first process's being the first."""
        return batches

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors, in place, the values of the first process's."""

    def add(self, tensor: Tensor) -> None:
        """Sum over the processes, in place."""

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Of each number the largest that a process has: what one wants, all do."""
        return numbers

    def gather(self, value: Result) -> list[Result]:
        """Each process's value, in their order."""
        return [value]

    def once(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives, done by the first process."""
        return work()

    def after_the_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives here, where the first process has done it before (and made the files
        that it makes).
        """
        return work()


class Several(Alone):
    """One process of a group that torch.distributed has initialised: ``size`` of them, this one
    being number ``rank``.

    Small values go over gloo, by a group of their own where `begun` has made it; gradients over the
    backend of their device. Where another process has died: `Lost`.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.reduce = self._reduce
        self.small = _of_small_values
        gloo = self.small is not None or "gloo" in dist.get_backend_config()
        self.host = torch.device("cpu" if gloo else "cuda")

    def seed_of(self, seed: int) -> int:
        """Its own; the first process keeps the seed of a training by one process."""
        return mix(seed, self.rank) % 2**32 if self.rank else seed

    def begin_step(self, seed: int, step: int, device: torch.device) -> None:
        """The noise is a function of (seed, rank, step): a checkpoint need not have every process's
        generators.
        """
        set_generators(mix(seed, self.rank, step), device)

    def share(self, batches: Iterator[Result]) -> Iterator[Result]:
        """Numbers rank, rank + size, …"""
        return (batch for number, batch in enumerate(batches) if number % self.size == self.rank)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """As bytes, one message for each device."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                by_device.setdefault(tensor.device, []).append(tensor.detach())
        for group in by_device.values():
            parts = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in group]
            flat = torch.cat(parts)
            with _noticing():
                dist.broadcast(flat, 0)
            for tensor, part in zip(group, flat.split([len(part) for part in parts]), strict=True):
                # cloned: a slice of bytes need not begin where a number may
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def add(self, tensor: Tensor) -> None:
        """An all-reduce."""
        with _noticing():
            dist.all_reduce(tensor)

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """An all-reduce of a few integers."""
        held = torch.tensor(numbers, device=self.host)
        with _noticing():
            dist.all_reduce(held, dist.ReduceOp.MAX, self.small)
        return tuple(held.tolist())

    def gather(self, value: Result) -> list[Result]:
        """Each process's, on all of them."""
        found: list[Any] = [None] * self.size
        with _noticing():
            dist.all_gather_object(found, value, self.small)
        return found

    def once(self, work: Callable[[], Result]) -> Result:
        """Done by the first process and sent to the others. If it fails there, the others notice that
        nothing comes.
        """
        held = [work() if self.first else None]
        with _noticing():
            dist.broadcast_object_list(held, 0, self.small)
        return held[0]  # type: ignore[return-value]

    def after_the_first(self, work: Callable[[], Result]) -> Result:
        """The others wait."""
        found = work() if self.first else None
        self.largest(0)
        return found if self.first else work()  # type: ignore[return-value]

    def _reduce(self, gradients: Sequence[Tensor], sums: Tensor) -> None:
        """The gradients' mean, a bucket for each dtype, and the sum of the figures."""
        buckets: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:
            buckets.setdefault(gradient.dtype, []).append(gradient)
        for bucket in buckets.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self.add(flat)
            flat /= self.size
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(
                bucket,
                [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)],
            )
        self.add(sums)


def current() -> Alone:
    """The group that this process belongs to: that of torch.distributed where it is initialised,
    else itself.
    """
    return (
        Several()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        else Alone()
    )


@contextmanager
def begun(device: str) -> Iterator[None]:
    """Inside, the processes that torchrun started are a group: NCCL between CUDA devices, one a
    process, else gloo.

    A single process stays what it is. Where an error leaves, the group is left for `torchrun.end`
    to close.

    Raises:
        UserError: a device with a number, or fewer CUDA devices than processes.
        Failure: the processes don't find each other.
    """
    if torchrun.size() == 1:
        yield
        return
    global _of_small_values
    backend, own = "gloo", dict[str, Any]()
    if find_device(device).type == "cuda":
        own["device_id"] = _take_device(device)
        backend = "cpu:gloo,cuda:nccl"
    held = torchrun.store()
    if held is not None:
        # under a name of its own, so that a process may be in a group more than once
        place = dist.PrefixStore(f"group {next(_groups)}", held)
        own |= {"store": place, "rank": torchrun.rank(), "world_size": torchrun.size()}
    try:
        dist.init_process_group(backend, timeout=STEP_WAIT, **own)
        _of_small_values = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise Failure(f"the processes can't connect to each other: {_first_line(error)}") from error
    yield
    _end_groups()


def _end_groups() -> None:
    global _of_small_values
    _of_small_values = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def goes_on() -> bool:
    """End the group: True where this is the first process, which goes on alone; the others have
    nothing left to do.
    """
    first = current().first
    _end_groups()
    return first


def _take_device(device: str) -> torch.device:
    """Let ``cuda`` be the CUDA device of this process's number on its machine."""
    if find_device(device).index is not None:
        raise UserError(
            f"--device {device} is one device, but each of the {torchrun.size()} processes "
            "needs its own: give --device cuda"
        )
    here, there = (
        int(os.environ.get("LOCAL_WORLD_SIZE", torchrun.size())),
        torch.cuda.device_count(),
    )
    if here > there:
        raise UserError(
            f"{here} processes on this machine, which has {there} CUDA devices: start as many, or "
            "give --device cpu"
        )
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torchrun.rank())))
    torch.cuda.set_device(own)
    return own


@contextmanager
def _noticing() -> Iterator[None]:
    """Turn the error of a connection that broke into `Lost`."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(
            f"another process of the {dist.get_world_size()} has ended ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return words.partition("] ")[2].partition(". ")[0] if words.startswith("[") else words[:160]
