"""Cache of what is known of two programs, for as long as both exist."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyro_vae.fields import Part, made_of
from pyro_vae.pair.nodes import Fields
from pyro_vae.pair.parameter_store import ParameterStore
from pyro_vae.pair.program import handled, scales_ignored
from pyro_vae.pair.structure import Structure

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair


@dataclass(eq=False)
class Known:
    """What is known of two programs for as long as both live; it has no strong reference to either,
    nor to their modules.
    """

    store: ParameterStore = field(default_factory=ParameterStore)
    structures: dict[Any, Structure] = field(default_factory=dict)
    layouts: dict[Any, str] = field(default_factory=dict)
    # why whole numbers of such a shape and dtype don't stay what they are; empty where they do
    whole: dict[Any, str] = field(default_factory=dict)
    modules: weakref.WeakValueDictionary[int, nn.Module] = field(
        default_factory=weakref.WeakValueDictionary
    )
    names: weakref.WeakValueDictionary[tuple[str, str], Tensor] = field(
        default_factory=weakref.WeakValueDictionary
    )
    pair: Callable[[], Pair | None] = lambda: None  # the pair in use, if there is one
    parts: tuple[Any, ...] = ()  # references to what it is the knowledge of
    in_pyros_store: Known | None = (
        None  # the same of these programs under Pyro's own parameter store
    )


KNOWN: dict[Any, Known] = {}  # by the parts' identities, until one of the parts is gone


def parts_of(call: Callable[..., Any]) -> tuple[Any, ...]:
    """What makes a program this one: an object and its function for a method, which is made again
    at each access.
    """
    return (call.__self__, call.__func__) if inspect.ismethod(call) else handled(call) or (call,)


def weakly(part: Any, gone: Callable[[Any], Any]) -> Any:
    try:
        return weakref.ref(part, gone)
    except TypeError:  # it can't be referred to weakly: its parameters are kept for good
        return part


def like(x: Tensor, fields: Fields) -> Any:
    rows = sorted(
        (name, made_of(name) if isinstance(name, Part) else "", tuple(value.shape[1:]), value.dtype)
        for name, value in fields.items()
    )
    return tuple(x.shape[1:]), x.dtype, x.device, tuple(rows), scales_ignored()
