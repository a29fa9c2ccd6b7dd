"""Training settings that are numbers and words: one dataclass for `fit` and the command line.

Free of torch, so that ``pyro-vae --help`` is quick. The docstrings below the fields are the command
line's help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pyro_vae.errors import UserError, shortened
from pyro_vae.validation import check_choice


def option(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field with the range of its numbers."""
    return field(default=default, metadata={"least": least, "above": above, "below": below})


@dataclass(frozen=True)
class Settings:
    """What ``fit`` and ``pyro-vae train`` have in common; ``fit`` takes objects for the words
    too.
    """

    objective: str = "TraceMeanField_ELBO"
    """The bound on log p(x) that training raises."""
    batch_size: int = option(128, least=1)
    """The number of images in one step."""
    learning_rate: float = option(1e-3, above=0)
    """The highest learning rate."""
    optimizer: str = "Adam"
    """A torch optimiser, such as "Adam(eps=1e-4)"."""
    schedule: str = "cosine"
    """How the learning rate falls: cosine, linear, geometric, constant."""
    kl_weight: float | str = option(1.0, least=0)
    """The weight of the KL in training (β), or one for each latent site, such as z1=1,z2=0.5; 1
    gives the ELBO.
    """
    kl_warmup: float | str = option(0.0, least=0)
    """How the KL weight rises: a number of epochs in which it rises from 0, or
    "Cyclical(cycles=4, ramp=0.5)"; by default it has its full value from the start.
    """
    grad_clip: float | None = option(None, above=0)
    """The largest norm of the gradient: a larger gradient is scaled down to it; by default
    gradients are not changed.
    """
    freeze: str | None = None
    """What is not trained: model, guide, or a pattern of parameters' names, such as
    "model.likelihood.*"; by default everything is trained.
    """
    seed: int = option(0, least=0, below=2**32)
    """The seed of the initial parameters, the order of the images and the noise."""
    compile: Literal["auto", "inductor", "graph", "off"] = "auto"
    """How a training step is run: compiled (inductor), as a replayed graph (graph), or as plain
    Pyro (off). auto compiles if the number of steps is worth it.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """The numbers that a training step multiplies; sums and the optimiser are in float32. The error
    on the ELBO of the first batch is in the note on the training step.
    """
    on_divergence: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is NaN or infinite: stop and say where, or skip and count the step.
    """


def by_site(kl_weight: Any, written: str = "kl_weight={!r}") -> tuple[float, dict[str, float]]:
    """β, and its factors by site, where it is a mapping of them or a text such as "z1=1,z2=0.5".

    Raises:
        UserError: one is no number, or negative.
    """
    found = kl_weight
    if isinstance(found, str):
        pairs = [part.partition("=") for part in found.split(",")]
        with suppress(ValueError):
            found = {name.strip(): float(value) for name, _, value in pairs if name.strip()}
    sites = dict(found) if isinstance(found, Mapping) else {}
    for value in sites.values() or [found]:
        if not (is_a(value, float) and _in_range(value, {"least": 0})):
            raise UserError(
                f"{written.format(kl_weight)}: expected a number, 0 or more, or one of each "
                "latent site, as {'z1': 1.0, 'z2': 0.5} (--kl-weight z1=1,z2=0.5)"
            )
    return (1.0 if sites else float(found)), {name: float(v) for name, v in sites.items()}


def check_fields(options: Any, *, flags: bool = True) -> None:
    """Raise a ``UserError`` for the first field whose value is not of its type, or out of its
    range.

    Args:
        options: a dataclass, its numbers' ranges by `option`.
        flags: whether its fields are flags of the command line; else they are arguments of a
            function, which takes objects for words.
    """
    owner: Any = type(options)
    for each in fields(options):
        kinds, value = kinds_of(owner, each.name), getattr(options, each.name)
        if not flags and get_origin(kinds[0]) is Literal:  # the parser looks at those of flags
            check_choice(each.name, value, get_args(kinds[0]))
        if not flags and (str in kinds or not each.metadata):
            continue
        if not (any(is_a(value, kind) for kind in kinds) and _in_range(value, each.metadata)):
            value = ", ".join(map(str, value)) if flags and isinstance(value, tuple) else value
            shown = each.name.upper() if each.metadata.get("place") else flag(each.name)
            given = shortened(" ".join(repr(value).split()), 60)
            written = f"{shown} {given}" if flags else f"{each.name}={given}"
            named = f" (a field of this name: fields={{{each.name!r}: …}})" * hasattr(
                value, "shape"
            )
            raise UserError(f"{written}: expected {expected(kinds, each.metadata)}{named}")


@cache
def kinds_of(owner: type, name: str) -> tuple[Any, ...]:
    """The types, or Literals, that a field may have."""
    return kinds_in(get_type_hints(owner)[name])


def kinds_in(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type itself."""
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def flag(name: str) -> str:
    """``--batch-size`` for the field ``batch_size``."""
    return f"--{name.replace('_', '-')}"


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or one of a Literal's; True is no number."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, tuple) and get_origin(kind) is tuple:
        inner = kinds_in(get_args(kind)[0])
        return all(any(is_a(each, one) for one in inner) for each in value)
    return isinstance(value, Real if kind is float else get_origin(kind) or kind)


def _in_range(value: Any, limits: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return True
    least, above, below = (limits.get(name) for name in ("least", "above", "below"))
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def expected(kinds: tuple[Any, ...], limits: Mapping[str, Any]) -> str:
    """The first of the types, and the range, in words."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    names[Path] = "a path"
    kind = next(kind for kind in kinds if kind is not NoneType)
    kind = kinds_in(get_args(kind)[0])[0] if get_origin(kind) is tuple else kind
    words = names.get(kind) or f"one of {', '.join(get_args(kind))}"
    least, above, below = (limits.get(name) for name in ("least", "above", "below"))
    if least is not None and below is not None:
        return f"{words} from {least:g} to below {below}"
    low = f", {least:g} or more" if least is not None else ""
    return words + (f" above {above:g}" if above is not None else low)
