"""Initialisation: from the data (a decoder's bias at the mean image, a mixture at k-means), and
from another pair's parameters, where name and shape are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_vae.data.batches import Source
from pyro_vae.data.observations import Observation
from pyro_vae.errors import UserError
from pyro_vae.pair.parameters import Own, read_parameters, tensors_of
from pyro_vae.pair.runtime import Pair
from pyro_vae.protocols import DataStart
from pyro_vae.training import checkpoint_files

MOST_IMAGES = 20_000
"""Enough to find clusters in, of a set of any size."""


def start_from_data(pair: Pair, source: Source, observe: Observation | None, seed: int) -> None:
    """Start every module of the pair that waits for its data (`DataStart`), which then says that it
    waits no more; a resumed training does not.
    """
    data = TrainingImages(pair, source, observe, seed)
    for module in pair.modules:
        if isinstance(module, DataStart) and module.waits_for_data:
            module.start_from_data(data)


class TrainingImages:
    """The images that are trained on, and no validation images, as the model will see them; read
    when they are asked for.
    """

    def __init__(self, pair: Pair, source: Source, observe: Observation | None, seed: int) -> None:
        self._pair, self._source, self._observe, self._seed = pair, source, observe, seed

    @cached_property
    def sample(self) -> Tensor:
        """`MOST_IMAGES` of them or all, in a random order, as they are observed, with the mean in
        the place of a NaN: ``(N, *event_shape)``.
        """
        parts: list[Tensor] = []
        for x, _ in self._source.shuffled(self._seed, 1):
            parts.append(self._pair.cast(x if self._observe is None else self._observe(x)))
            if sum(map(len, parts)) >= MOST_IMAGES:
                break
        found = torch.cat(parts)
        seen = ~found.isnan()
        mean = torch.where(seen, found, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        return torch.where(seen, found, mean)

    def field(self, name: str) -> Tensor | None:
        """The named field of all of them, ``(N, …)``; None where it was not given."""
        parts = [fields[name] for _, fields in self._source.in_order() if name in fields]
        return torch.cat(parts) if parts else None

    @cached_property
    def mean(self) -> Tensor:
        """The mean of what is observed of all of them, ``event_shape``, float64 on the CPU; nothing
        is drawn.
        """
        total: Any = 0.0
        number: Any = 0
        for x, _ in self._source.in_order():
            expected = x if self._observe is None else self._observe.expected(x)
            seen = ~expected.isnan()
            total = total + torch.where(seen, expected, 0.0).cpu().double().sum(0)
            number = number + seen.sum(0).cpu()
        mean: Tensor = total / number.clamp(min=1)
        return mean


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
