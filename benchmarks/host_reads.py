"""How often the host reads the device: on a GPU each read waits for all that was queued before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

# operators whose result, or whose result's shape, the host waits for; item(), float() and bool()
# end in the first
_OPERATORS = (
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
)
# methods that read a CPU tensor's memory without an operator
_METHODS = ("tolist", "numpy", "__array__", "cpu")


class _Operators(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _OPERATORS:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").rpartition(".")[2]
        if name in _METHODS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The reads made inside, by name, in their order; counted on any device."""
    seen: list[str] = []
    with _Methods(seen), _Operators(seen):
        yield seen


def reads_per_epoch(train: Callable[[int], Any], few: int = 2, many: int = 5) -> float:
    """Reads of one epoch of ``train(num_epochs)``: what more epochs add, as the set-up reads too."""
    counts = []
    for num_epochs in (few, many):
        with host_reads() as seen, torch.random.fork_rng():
            train(num_epochs)
        counts.append(len(seen))
    return (counts[1] - counts[0]) / (many - few)
