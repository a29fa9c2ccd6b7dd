"""Parameters of a pair by name: read, saved, loaded, copied to Pyro's parameter store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_vae import __version__
from pyro_vae.errors import UserError, first_line
from pyro_vae.files import write_atomically
from pyro_vae.pair.runtime import Pair

FORMAT = "1"
_UNCONSTRAINED = "_unconstrained"
MOST_NAMES = 5
"""In one line."""


@dataclass(frozen=True)
class Own:
    """A tensor that training changes."""

    tensor: Tensor  # unconstrained, as it is trained
    constraint: constraints.Constraint
    kind: str  # parameter, buffer, or pyro.param

    @property
    def value(self) -> Tensor:
        """As a program sees it, a copy."""
        found: Tensor = transform_to(self.constraint)(self.tensor.detach())
        return found.clone()


def parameters(
    model: Callable[..., Any], guide: Callable[..., Any], *, fill_store: bool = False
) -> dict[str, Tensor]:
    """All parameters of a pair by name: copies of their constrained values.

    A parameter of a module is named after the module, with ``model.`` or ``guide.`` in front where
    the two programs are two modules, or with the name that a function has for the module. A
    ``pyro.param`` has its own name. What a program creates as it runs is known once it has run
    (`fit`, `check_pair`).

    Args:
        model, guide: the pair, as `fit` takes it.
        fill_store: whether to copy them to Pyro's own ``pyro.get_param_store()`` too, under Pyro's
            names. `fit` leaves that store empty.

    Returns:
        Name -> constrained value, a copy.

    Raises:
        UserError: there is no parameter; with ``fill_store``, two have the same name in Pyro's
            store.
    """
    pair = Pair.of(model, guide)
    own = {name: each for name, each in tensors_of(pair).items() if each.kind != "buffer"}
    if not own:
        raise UserError(
            "no parameter of this pair is known yet: first fit it, or run "
            "check_pair(model, guide, x)"
        )
    if fill_store:
        _fill_store(pair, own)
    return {name: each.value for name, each in own.items()}


def save_parameters(path: str | Path, model: Callable[..., Any], guide: Callable[..., Any]) -> Path:
    """Save every parameter and buffer of a pair to one safetensors file.

    The file appears whole or not at all. Its tensors are unconstrained; its metadata has each
    tensor's constraint and kind as JSON, and a SHA-256 of all.

    Args:
        path: the file; an existing one is replaced.
        model, guide: the pair, as `fit` takes it.

    Returns:
        The file's path.

    Raises:
        UserError: the pair has no parameter yet; the file can't be written.
    """
    from safetensors.torch import save

    parameters(model, guide)  # refuses a pair without any
    own = tensors_of(Pair.of(model, guide))
    tensors = {n: each.tensor.detach().cpu().contiguous().clone() for n, each in own.items()}
    about = {n: {"constraint": str(e.constraint), "kind": e.kind} for n, e in own.items()}
    words = {
        "format": FORMAT,
        "version": __version__,
        "parameters": json.dumps(about),
        "sha256": _digest(tensors),
    }
    place = Path(path)
    try:
        write_atomically(place, save(tensors, words))
    except OSError as error:
        raise UserError(f"{place} can't be written: {first_line(error)}") from error
    return place


def load_parameters(path: str | Path, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
    """Load a file of `save_parameters` into a pair, in place: all of it, or nothing.

    A ``pyro.param`` that the programs have not created yet gets the file's value when they first
    run.

    Args:
        path: the file.
        model, guide: a pair of the same programs.

    Raises:
        UserError: the file is damaged or missing; or its names, shapes or constraints are not those
            of the pair: the sentence lists them.
    """
    place = Path(path)
    tensors, about = read_parameters(place)
    pair = Pair.of(model, guide)
    own = tensors_of(pair)
    new = tensors.keys() - own.keys()
    waiting = set() if pair.was_run else {n for n in new if about[n]["kind"] == "pyro.param"}
    _refuse_names("lacks", place, own.keys() - tensors.keys())
    _refuse_names("has these, which are not in the pair:", place, new - waiting)
    for name, each in own.items():
        _refuse_other(place, name, tensors[name], about[name], each.tensor, str(each.constraint))
    _refuse_untied(place, own, tensors)
    with torch.no_grad():
        for name, each in own.items():
            each.tensor.copy_(tensors[name])
    pair.store.waiting = {
        name: (tensors[name], partial(_refuse_other, place, name, tensors[name], about[name]))
        for name in waiting
    }


def tensors_of(pair: Pair) -> dict[str, Own]:
    """All that training changes, by name: each module under the first of its names."""
    found: dict[str, Own] = {}
    met: set[nn.Module] = set()

    def add(name: str, own: Own) -> None:
        if name in found:
            raise UserError(f"two tensors of the pair are called {name!r}: rename one of them")
        found[name] = own

    for prefix, root in _roots(pair):
        for place, module in root.named_modules(memo=met):
            for kind, named in (("parameter", module._parameters), ("buffer", module._buffers)):
                for name, tensor in named.items():
                    if tensor is None:
                        continue
                    whole = ".".join(part for part in (prefix, place, name) if part)
                    add(*_in_module(module, whole, name, tensor, kind))
    for name, parameter in pair.store.parameters.items():
        add(name, Own(parameter, pair.store.constraints[name], "pyro.param"))
    return found


def _roots(pair: Pair) -> list[tuple[str, nn.Module]]:
    """The modules that are in no other one, or are known by several names, each by its name:
    ``model``, ``guide``, ``model.net`` for what a function calls ``net``; "" for one that both
    programs are methods of.
    """
    shared = pair.model.owner is not None and pair.model.owner is pair.guide.owner
    found: list[tuple[str, nn.Module]] = []
    covered: set[int] = set()
    for program in (pair.model, pair.guide):
        for name, module in program.roots:
            parts = [program.role] * (not shared or bool(name)) + [name] * bool(name)
            found.append((".".join(parts), module))
            covered.update(map(id, module.modules()))
    for number, module in enumerate(pair.modules):  # those that only a run has met
        if id(module) not in covered:
            seen = [pair.seen(p) for p in module.parameters()]
            pyros = [name for _, name in filter(None, seen) if "$$$" in name]
            own = pyros[0].partition("$$$")[0] if pyros else f"module{number}"
            found.append((own, module))
            covered.update(map(id, module.modules()))
    return found


def _in_module(
    module: nn.Module, whole: str, name: str, tensor: Tensor, kind: str
) -> tuple[str, Own]:
    """A tensor of a module; a PyroParam by the name that its class gives it."""
    own = name.removesuffix(_UNCONSTRAINED)
    if isinstance(module, PyroModule) and own != name and own in module._pyro_params:
        constraint = module._pyro_params[own][0]
        return whole.removesuffix(_UNCONSTRAINED), Own(tensor, constraint, kind)
    return whole, Own(tensor, constraints.real, kind)


def _fill_store(pair: Pair, own: Mapping[str, Own]) -> None:
    """Each parameter in Pyro's store, under the name that the programs' own statements give it."""
    named: dict[str, tuple[str, Own]] = {}
    for name, each in own.items():
        pyros = pair.name_of(each.tensor)[1].removesuffix(_UNCONSTRAINED)
        if pyros.startswith("tensor of shape"):
            pyros = name
        if pyros in named and named[pyros][1].tensor is not each.tensor:
            raise UserError(
                f"{named[pyros][0]!r} and {name!r} are both called {pyros!r} in Pyro's "
                "parameter store, where one would replace the other: give the modules of the "
                "two programs other names"
            )
        named[pyros] = name, each
    store = pyro.get_param_store()
    for pyros, (_, each) in named.items():
        if pyros in store:
            del store[pyros]
        store.setdefault(pyros, each.value, constraint=each.constraint)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name]
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_parameters(place: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """The file's tensors, and what it says of each."""
    from safetensors.torch import load

    try:
        content = place.read_bytes()
    except OSError as error:
        raise UserError(f"{place} can't be read: {first_line(error)}") from error
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        words = header["__metadata__"]
        about, digest, form = json.loads(words["parameters"]), words["sha256"], words["format"]
        whole = about.keys() == tensors.keys() and digest == _digest(tensors)
    except Exception as error:  # whatever a file that is none makes its readers raise
        raise UserError(
            f"{place} was not written by save_parameters ({first_line(error)})"
        ) from error
    if form != FORMAT:
        raise UserError(f"{place} is of format {form}, but this version reads format {FORMAT}")
    if not whole:
        raise UserError(f"{place} is damaged: its SHA-256 is not that of its tensors")
    return tensors, about


def _refuse_untied(place: Path, own: Mapping[str, Own], tensors: Mapping[str, Tensor]) -> None:
    """A ``UserError`` where one tensor of the pair has two values in the file."""
    first: dict[int, str] = {}
    for name, each in own.items():
        other = first.setdefault(id(each.tensor), name)
        if not torch.equal(tensors[name], tensors[other]):
            raise UserError(
                f"{place}: {other!r} and {name!r} are one tensor in this pair, but two in the file"
            )


def _refuse_names(what: str, place: Path, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        raise UserError(
            f"{place} {what} {', '.join(map(repr, sorted(names)[:MOST_NAMES]))}{more}: load it "
            "into the pair that it was saved from. If a function creates a module only when it "
            "runs, first call check_pair(model, guide, x)"
        )


def _refuse_other(
    place: Path, name: str, held: Tensor, about: Mapping[str, str], own: Tensor, constraint: str
) -> None:
    """A ``UserError`` where the file's tensor is not one for this parameter."""
    pairs = (
        ("shape", tuple(held.shape), tuple(own.shape)),
        ("dtype", held.dtype, own.dtype),
        ("constraint", about["constraint"], constraint),
    )
    for what, its, ours in pairs:
        if its != ours:
            raise UserError(f"{place}: {name!r} has {what} {its} there and {ours} in this pair")
