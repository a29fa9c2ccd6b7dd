"""Initialisation from another pair's parameters, where name and shape are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_vae.errors import UserError
from pyro_vae.pair.parameters import Own, read_parameters, tensors_of
from pyro_vae.pair.runtime import Pair
from pyro_vae.training import checkpoint_files

Init: TypeAlias = str | Path | Mapping[str, Tensor] | tuple[Callable[..., Any], Callable[..., Any]]


def begin(pair: Pair, init: Init) -> str:
    """Put into the pair, in place, what it has in common with ``init``; a line says what that is,
    and what is fresh.

    Raises:
        UserError: ``init`` can't be read, or has nothing of this pair.
    """
    own = tensors_of(pair)
    of, held = _held(init, own)
    trained = [name for name, each in own.items() if each.kind != "buffer"]
    if not any(name in held for name in trained):
        raise UserError(
            f"init: {of} has no parameter of the name and shape of one of this pair's "
            f"({', '.join(trained[:3])}, …): give one with a part in common"
        )
    # a buffer besides parameters is what they were trained with (BatchNorm's); one alone is a
    # setting
    owners = {name.rpartition(".")[0] for name in trained if name in held}
    with torch.no_grad():
        for name, tensor in held.items():
            if own[name].kind != "buffer" or name.rpartition(".")[0] in owners:
                own[name].tensor.copy_(tensor)
    all_of = Counter(map(_part, trained))
    taken = Counter(_part(name) for name in trained if name in held)
    fresh = all_of - taken
    common, new = (
        ", ".join(
            part if number == all_of[part] else f"{number} of {all_of[part]} tensors of {part}"
            for part, number in counted.items()
        )
        for counted in (taken, fresh)
    )
    return f"from {of}: {common}; fresh: {new or 'nothing'}"


def _part(name: str) -> str:
    """``model.likelihood`` of ``model.likelihood.net.layers.0.weight``."""
    return ".".join(name.split(".")[:2])


def _held(init: Init, own: Mapping[str, Own]) -> tuple[str, dict[str, Tensor]]:
    """What ``init`` is called, and its tensors, unconstrained, that are of a name, a shape and a
    constraint of ours.
    """
    if isinstance(init, Mapping):
        return "the mapping", {
            name: _unconstrained(name, torch.as_tensor(value), own[name])
            for name, value in init.items()
            if name in own and torch.as_tensor(value).shape == own[name].value.shape
        }
    if isinstance(init, tuple):
        if len(init) != 2 or not all(map(callable, init)):
            raise UserError("init is a tuple: expected a model and its guide")
        other = tensors_of(Pair.of(*init))
        of, held = "the pair", {n: (e.tensor, str(e.constraint)) for n, e in other.items()}
    elif isinstance(init, str | Path):
        of, held = str(init), _kept(Path(init).expanduser())
    else:
        raise UserError(
            f"init is a {type(init).__name__}: expected a run's folder, a file of save_parameters, "
            "a model with its guide, or a mapping of parameters"
        )
    return of, {
        name: tensor
        for name, (tensor, constraint) in held.items()
        if name in own
        and tensor.shape == own[name].tensor.shape
        and constraint in ("", str(own[name].constraint))
    }


def _kept(path: Path) -> dict[str, tuple[Tensor, str]]:
    """The tensors in a file or a folder by name, each with its constraint, where that is known."""
    if not path.is_dir():
        tensors, about = read_parameters(path)
        return {name: (each, about[name]["constraint"]) for name, each in tensors.items()}
    inner = path / "checkpoints"
    found = checkpoint_files.newest(inner if inner.is_dir() else path)
    return {
        f"{role}.{name}".removesuffix("_unconstrained"): (tensor, "")
        for role in ("model", "guide")
        for name, tensor in found.held.sections[role].items()
        if isinstance(tensor, Tensor)
    }


def _unconstrained(name: str, value: Tensor, own: Own) -> Tensor:
    value = value.to(own.tensor)
    if not bool(own.constraint.check(value).all()):
        raise UserError(f"init: {name} is not within its constraint, {own.constraint}")
    found: Tensor = transform_to(own.constraint).inv(value)
    return found
