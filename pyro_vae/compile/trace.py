"""Tracing: the effect handlers run once; the Pyro program becomes a graph of tensor operations."""

from __future__ import annotations

import logging
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compile import cache
from pyro_vae.compile.graph_passes import leave_out_identities
from pyro_vae.errors import first_line
from pyro_vae.rng import own_randomness
from pyro_vae.signals import time_limit
from pyro_vae.validation import check_choice

TIERS = ("auto", "inductor", "graph", "off")
TensorFunction = Callable[..., Sequence[Tensor]]

# their output's shape, or the very branch that was traced, depends on the batch that was traced
DATA_DEPENDENT = ("nonzero", "masked_select", "_local_scalar_dense", "unique", "item")

# they read an error code from the device, so that the host takes part
HOST_READS = ("_linalg_check_errors", "_assert_scalar")


def check_tier(name: str) -> None:
    """A ``UserError`` for what is no tier."""
    check_choice("compile tier", name, TIERS)


class NotStageable(Exception):
    """The program can't be replayed on another batch; the sentence says why."""


@dataclass(frozen=True)
class TensorProgram:
    """A traced function as a graph whose first inputs are the tensors that it captured, then its
    own arguments.
    """

    graph: fx.GraphModule
    captured: tuple[Tensor, ...]

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """Replay the graph node by node: the same operations in the same order, to the last bit."""
        outputs: Sequence[Tensor] = self.graph(*self.captured, *arguments)
        return outputs

    @property
    def host_reads(self) -> list[str]:
        """The operations in which the host reads from the device: a CUDA graph can't have them."""
        return [name for node in self.graph.graph.nodes if (name := _name(node)) in HOST_READS]

    def compile(self, arguments: Sequence[Tensor]) -> TensorFunction:
        """The graph compiled by inductor, its noise being eager noise; for inputs shaped like
        ``arguments``.

        Raises:
            NotStageable: inductor failed, and how.
        """
        captured = self.captured
        if missing := missing_compiler(arguments[0].device):
            raise NotStageable(missing)
        try:
            with time_limit(COMPILE_SECONDS, "the compiler"):
                compiled = _inductor(self.graph, [*captured, *arguments])
        except Exception as error:
            raise NotStageable(f"inductor failed ({first_line(error)})") from error
        return lambda *given: compiled(*captured, *given)


def trace(function: TensorFunction, arguments: Sequence[Tensor]) -> TensorProgram:
    """Trace ``function`` at ``arguments`` with its gradients, and lift what it captures
    (parameters, buffers, weights).

    Raises:
        NotStageable: where the graph depends on the values of this very batch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own notices on tracing constants
            module = make_fx(function)(*arguments)
    except Exception as error:
        raise NotStageable(f"tracing failed ({first_line(error)})") from error
    _refuse_data_dependence(module.graph)
    module.graph.eliminate_dead_code()
    leave_out_identities(module.graph)
    captured = _lift(module)
    module.recompile()
    return TensorProgram(module, captured)


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _refuse_data_dependence(graph: fx.Graph) -> None:
    for node in graph.nodes:
        name = _name(node)
        if name in DATA_DEPENDENT:
            raise NotStageable(f"the program calls {name}, and the result depends on the batch")
        if name in ("index", "index_put", "index_put_"):
            for index in node.args[1]:
                if isinstance(index, fx.Node) and index.meta["val"].dtype in (
                    torch.bool,
                    torch.uint8,
                ):
                    raise NotStageable(
                        "the program indexes with a boolean mask, and the result's shape "
                        "depends on the batch"
                    )


def _lift(module: fx.GraphModule) -> tuple[Tensor, ...]:
    """Turn every ``get_attr`` into a placeholder ahead of the others; equal tensors share one."""
    graph = module.graph
    first = next(iter(graph.nodes))
    captured: dict[int, Tensor] = {}
    placeholders: dict[int, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(module, node.target)
        if id(tensor) not in captured:
            captured[id(tensor)] = tensor
            with graph.inserting_before(first):
                placeholders[id(tensor)] = graph.placeholder(f"captured_{len(placeholders)}")
        node.replace_all_uses_with(placeholders[id(tensor)])
        graph.erase_node(node)
    module.delete_all_unused_submodules()
    for name in [
        *module._parameters,
        *module._buffers,
    ]:  # the compiler would hand each of them over again at every call
        delattr(module, name)
    return tuple(tensor.detach() for tensor in captured.values())


COMPILE_SECONDS = 300.0
"""A compiler that takes longer hangs: a cold compilation takes about 15 s, on a busy machine a few
minutes.
"""


def _inductor(module: fx.GraphModule, inputs: Sequence[Tensor]) -> TensorFunction:
    for node in (
        module.graph.nodes
    ):  # the traced shapes' metadata would be taken for fake tensors of another mode
        node.meta.pop("val", None)
        node.meta.pop("tensor_meta", None)
    with _quiet(), torch.no_grad():
        cache.ensure()
        from torch._inductor.compile_fx import compile_fx

        patches: dict[str, Any] = {
            "fallback_random": True,
            "cpp_wrapper": inputs[0].device.type == "cpu",
        }
        compiled: Any = compile_fx(module, list(inputs), config_patches=patches)
    function: TensorFunction = compiled
    return function


@contextmanager
def _quiet() -> Iterator[None]:
    """Inductor logs each operation that its C++ wrapper calls through Python, torch that a CPU has
    no CUDA.
    """
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def apart(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference, infinite for a NaN on one side, and the largest finite value that was
    expected; what is NaN, or the same infinity, in both is equal.
    """
    alike = (found == expected) | (found.isnan() & expected.isnan())
    error = (found - expected).abs().masked_fill(alike, 0.0).nan_to_num(torch.inf)
    return float(error.max()), float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max())


def agree(
    program: TensorFunction,
    eager: TensorFunction,
    batches: Sequence[Sequence[Tensor]],
    groups: Sequence[int] = (),
    tolerance: float = 1e-4,
    floor: float = 0.0,
) -> None:
    """Compare a tensor program with the function that it is traced from, in the same noise, on each
    batch of arguments.

    Args:
        groups: how many outputs are compared together; the rest are the last group.
        tolerance: the largest difference in a group, over the largest value there (``floor`` where
            that is smaller).

    Raises:
        NotStageable: they differ, and by how much.
    """
    for seed, arguments in enumerate(batches):
        results = []
        for function in (program, eager):
            with own_randomness(seed, arguments[0].device):
                results.append([value.double().flatten() for value in function(*arguments)])
        none, start = results[0][0].new_zeros(1), 0
        for count in (*groups, len(results[0]) - sum(groups)):
            found, expected = (
                torch.cat((none, *values[start : start + count])) for values in results
            )
            start += count
            error, size = apart(found, expected)
            size = max(size, floor)
            if not error <= tolerance * size + torch.finfo(torch.float32).tiny:
                raise NotStageable(
                    f"the tensor program differs from the eager one by {error:.1e} of {size:.1e}"
                )


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors their values back on leaving."""
    kept = [(tensor.detach(), tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def missing_compiler(device: torch.device) -> str:
    """Why inductor can't compile for the CPU here, or nothing."""
    if device.type != "cpu":
        return ""
    if shutil.which("g++") is None:
        return "inductor needs g++, which is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        major, minor, *_ = sys.version_info
        return f"inductor needs the headers of Python {major}.{minor}"
    return ""
