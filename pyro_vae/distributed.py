"""Several processes (torchrun): how they divide work, add up results, and agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count, islice
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


class Group:
    """The processes that torch.distributed has initialised, ``size`` of them, this one being number
    ``rank``; or one process, which does what several do together by doing nothing.

    Small values go over gloo, by a group of their own where `begun` has made it; gradients over the
    backend of their device. Where another process has died: `Lost`.
    """

    reduce: Callable[[Sequence[Tensor], Tensor], None] | None = None
    """Between backward and update: averages the gradients, adds up the figures; None where there is
    nothing to do.
    """

    def __init__(self) -> None:
        self.rank, self.size, self.small = 0, 1, _of_small_values
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self.reduce = self._reduce
            gloo = self.small is not None or "gloo" in dist.get_backend_config()
            self.host = torch.device("cpu" if gloo else "cuda")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def seed_of(self, seed: int) -> int:
        """This process's own seed, out of one that all have; the first one keeps that of a training
        by one process.
        """
        return mix(seed, self.rank) % 2**32 if self.rank else seed

    def begin_step(self, seed: int, step: int, device: torch.device) -> None:
        """Before a training step's noise is drawn. Of several processes it is a function of (seed,
        rank, step): a checkpoint need not have every process's generators.
        """
        if self.size > 1:
            set_generators(mix(seed, self.rank, step), device)

    def share(self, batches: Iterator[Result]) -> Iterator[Result]:
        """Numbers rank, rank + size, … of them."""
        return islice(batches, self.rank, None, self.size)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors, in place, the values of the first process's: as bytes, which any
        backend takes.
        """
        for tensor in tensors if self.size > 1 else ():
            if tensor.numel():
                sent = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                self._told(dist.broadcast, sent, 0)
                tensor.detach().copy_(sent.view(tensor.dtype).view(tensor.shape))

    def add(self, tensor: Tensor) -> None:
        """Sum over the processes, in place."""
        self._told(dist.all_reduce, tensor)

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Of each number the largest that a process has: what one wants, all do."""
        if self.size == 1:
            return numbers
        held = torch.tensor(numbers, device=self.host)
        self._told(dist.all_reduce, held, dist.ReduceOp.MAX, self.small)
        return tuple(held.tolist())

    def gather(self, value: Result) -> list[Result]:
        """Each process's value, in their order."""
        found = [value] * self.size
        self._told(dist.all_gather_object, found, value, self.small)
        return found

    def once(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives, done by the first process, and told to the others; where it fails
        there, the others notice that nothing comes.
        """
        held: list[Any] = [work() if self.first else None]
        self._told(dist.broadcast_object_list, held, 0, self.small)
        return held[0]

    def after_the_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives here, where the first process has done it before (and made the files
        that it makes).
        """
        found = work() if self.first else None
        self.largest(0)
        return found if self.first else work()  # type: ignore[return-value]

    def _reduce(self, gradients: Sequence[Tensor], sums: Tensor) -> None:
        """The gradients' mean, in one message, and the sum of the figures."""
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.add(flat)
        parts = (flat / self.size).split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            list(gradients),
            [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)],
        )
        self.add(sums)

    def _told(self, call: Callable[..., object], *what: Any) -> None:
        """Take part in this call of torch.distributed's; of a connection that broke, `Lost`."""
        if self.size > 1:
            try:
                call(*what)
            except RuntimeError as error:
                raise Lost(
                    f"another process of the {self.size} has ended ({_first_line(error)})"
                ) from error


def current() -> Group:
    """The group that this process belongs to."""
    return Group()


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


def _first_line(error: BaseException) -> str:
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return words.partition("] ")[2].partition(". ")[0] if words.startswith("[") else words[:160]
