"""Lookup of parts: a part is found by its name in a namespace's ``__all__``.

This module imports torch only when a name is looked up, so that ``pyro-vae --help`` is quick.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pyro_vae.choices.specs import parse
from pyro_vae.choices.user_code import guarded, load_named
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.protocols import hook

NAMESPACES: dict[str, str] = {
    "model": "pyro_vae.models",
    "prior": "pyro_vae.models",
    "likelihood": "pyro_vae.models",
    "guide": "pyro_vae.guides",
    "objective": "pyro_vae.objectives",
    "net": "pyro_vae.nn",
    "optimizer": "torch.optim",
    "schedule": "pyro_vae.training.schedules",
    "warmup": "pyro_vae.training.kl_warmup",
    "data": "pyro_vae.data.datasets",
    "proposal": "pyro_vae.evaluation.proposals",
}
"""Where the parts of each slot live. Another package offers parts as entry points in the group
``pyro_vae.<slot>``.
"""

PROGRAMS = ("model", "guide")
"""Any Pyro program serves in these slots; in the others a class that names its slot (see
`checked`).
"""

UNSUITABLE = ("LBFGS", "Muon", "SparseAdam")
"""Optimisers that need many losses a step, matrices alone, or sparse gradients."""


def members(slot: str) -> dict[str, Any]:
    """The parts of the slot's own namespace, by name: the concrete classes of that slot (for data,
    the known sets).
    """
    if slot not in NAMESPACES:
        raise UserError(did_you_mean("slot", slot, NAMESPACES))
    namespace = importlib.import_module(NAMESPACES[slot])
    if slot == "data":
        return dict(namespace.DATASETS)
    parts = {name: getattr(namespace, name) for name in namespace.__all__}
    return {name: part for name, part in parts.items() if belongs(slot, part)}


def resolve(slot: str, name: str) -> Any:
    """The part of this ``name``: a member, an installed entry point, ``module:Name`` or
    ``file.py:Name``.

    The latter two import what they name: this is the one place that runs the user's code. What they
    name is looked at,
    and nothing of it is called: it is a part of this slot, or it is refused. A member is found in
    lower case too (``cosine``).

    Raises:
        UserError: if there is none, it is no part of this slot, or importing it fails.
    """
    own = members(slot)
    if name in own:
        return own[name]
    for entry in entries(slot):
        if entry.name == name:
            return checked(slot, name, guarded(entry.load, f"the entry point {entry.value}"))
    if ":" in name:
        return checked(slot, name, load_named(name))
    alike = [
        part for member, part in own.items() if member.lower() == name.lower()
    ]  # schedule="cosine"
    if len(alike) == 1:
        return alike[0]
    elsewhere = slots_by_name().get(name)
    if elsewhere:
        choices = ", ".join(sorted(_names(slot))) or "none"
        raise UserError(
            f"{name} is a part of the slot {' and '.join(elsewhere)}, not of {slot}; choices: "
            f"{choices}"
        )
    raise UserError(did_you_mean(slot, name, _names(slot)))


def canonical(slot: str, spec: str) -> str:
    """The same choice by its own name: ``meanfield( )`` is ``MeanField()``, ``cosine`` ``Cosine``;
    of one that is no member the spelling alone.
    """
    choice = parse(spec)
    own = {member.lower(): member for member in members(slot)}
    name = choice.name if choice.name in own.values() else own.get(choice.name.lower(), choice.name)
    return str(replace(choice, name=name))


def installed(slot: str) -> list[str]:
    """The names that other packages offer for the slot, as entry points."""
    return [entry.name for entry in entries(slot)]


def entries(slot: str) -> Iterable[EntryPoint]:
    return entry_points(group=f"pyro_vae.{slot}")


def belongs(slot: str, part: Any) -> bool:
    if not isinstance(part, type) or inspect.isabstract(part):
        return False
    return _is_optimizer(part) if slot == "optimizer" else hook(part, "slot") == slot


def _is_optimizer(part: type) -> bool:
    """A class of torch's, or of the user's."""
    from torch import optim

    return (
        issubclass(part, optim.Optimizer)
        and part is not optim.Optimizer
        and part.__name__ not in UNSUITABLE
    )


def _names(slot: str) -> list[str]:
    return [*members(slot), *installed(slot)]


def slots_by_name() -> dict[str, list[str]]:
    """The slots in which each name is known; a namespace that cannot be imported has none."""
    found: dict[str, list[str]] = {}
    for slot in NAMESPACES:
        with suppress(ImportError):
            for name in _names(slot):
                found.setdefault(name, []).append(slot)
    return found


def checked(slot: str, name: str, part: Any) -> Any:
    """``part``, refused if it is no part of the slot: a class that names it, an object of such a
    class, or a program.
    """
    if belongs(slot, part):
        return part
    if isinstance(part, type) and inspect.isabstract(part):
        missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
        raise UserError(f"{slot} {name} is abstract: give it {missing}")
    own = slot_of(part)
    if own is not None and own != slot:
        raise UserError(f"{name} is a part of the slot {own}, not of {slot}")
    if (own is None and _serves(slot, part)) or (own == slot != "optimizer"):
        return part
    raise UserError(f"{slot} {name} is {kind_of(part)}, not {wanted(slot)}")


def slot_of(part: Any) -> str | None:
    """The slot that a class names, or the class of an object."""
    own = hook(part if isinstance(part, type) else type(part), "slot")
    return own if isinstance(own, str) and own in NAMESPACES else None


def _serves(slot: str, part: Any) -> bool:
    """Whether what names no slot is what is asked for: a Pyro program, or a loader of data."""
    if slot in PROGRAMS:
        from torch import nn

        module = (
            issubclass(part, nn.Module) if isinstance(part, type) else isinstance(part, nn.Module)
        )
        # a partial, as what Pyro's handlers make is
        return module or _is_own_function(part) or isinstance(part, partial)
    if slot != "data" or not _is_own_function(part):
        return False
    return [
        p.name for p in inspect.signature(part).parameters.values() if p.default is p.empty
    ] == ["source"]


def _is_own_function(part: Any) -> bool:
    """Whether it is a function that is written in Python, none of Python's own library."""
    module = str(getattr(part, "__module__", "")).partition(".")[0]
    return inspect.isfunction(part) and module not in sys.stdlib_module_names - {"__main__"}


def kind_of(part: Any) -> str:
    """In words, without calling anything of it."""
    if isinstance(part, type):
        return (
            "a class without a slot"
            if slot_of(part) is None
            else f"a class of the slot {slot_of(part)}"
        )
    return (
        "a function" if inspect.isroutine(part) else f"an object of the class {type(part).__name__}"
    )


def wanted(slot: str) -> str:
    if slot == "optimizer":
        return "a subclass of torch.optim.Optimizer that takes one loss a step"
    if slot == "data":
        return "a Python function of one argument, source, that returns ImageData"
    own = f'a class with slot = "{slot}"'
    return (
        f"{own}, or a Pyro program (a Python function or nn.Module) without arguments"
        if slot in PROGRAMS
        else own
    )
