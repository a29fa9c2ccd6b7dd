"""The state of modules in a run: which are called, and their buffers (counters, averages)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def own_buffers(buffers: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Give the modules clones of these buffers, which the function may change, and put the
    originals back.
    """
    originals: list[Any] = [
        (module._buffers, name, module._buffers[name]) for module, name in buffers
    ]
    clones = {id(original): original.clone() for *_, original in originals}
    for own, name, original in originals:
        own[name] = clones[id(original)]
    try:
        yield
    finally:
        for own, name, original in originals:
            own[name] = original


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Torch's, Python's and NumPy's random state is put back on leaving."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    state = get_rng_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        set_rng_state(state)


@contextmanager
def attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Numbers and tensors that modules keep as plain attributes (a counter, a moving average) are
    put back on leaving.
    """
    kept = [
        (module, name, value, value.clone() if isinstance(value, Tensor) else None)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | Tensor) and name != "training"
    ]
    try:
        yield
    finally:
        for module, name, value, content in kept:
            if name not in vars(module):
                # it has become a parameter or a buffer, which an attribute of that name would hide
                continue
            if (
                isinstance(value, Tensor)
                and content is not None
                and not torch.equal(value, content)
            ):
                value.data.copy_(content)
            vars(module)[name] = value


@contextmanager
def statistics_kept() -> Iterator[None]:
    """Modules that run inside leave buffers (BatchNorm's, spectral norm's) and counters as they
    were: a batch counts once.
    """
    with ExitStack() as stack:

        def meet(module: nn.Module) -> None:
            places = [
                (module, name) for name, buffer in module._buffers.items() if buffer is not None
            ]
            if module.training and places:
                stack.enter_context(own_buffers(places))
            if module.training:
                stack.enter_context(attributes_kept([module]))

        stack.enter_context(modules_called(meet))
        yield


@contextmanager
def modules_called(meet: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call ``meet`` on every ``nn.Module`` just before it runs inside, or is registered by
    ``pyro.module``.

    Those that a closure hides are met too, and one that only has others, whose own mode a program
    may ask for.
    """
    handle, register = register_module_forward_pre_hook(lambda module, _: meet(module)), pyro.module

    def registered(
        name: str, nn_module: nn.Module, update_module_params: bool = False
    ) -> nn.Module:
        for module in nn_module.modules():
            meet(module)
        result: nn.Module = register(name, nn_module, update_module_params)
        return result

    pyro.module = registered
    try:
        yield
    finally:
        pyro.module = register
        handle.remove()
