"""The arguments with which stock SVI calls a loss, split into x and named fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.fields import as_fields
from pyro_vae.pair.runtime import Pair


def batch_of(
    pair: Pair, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """x and the named fields of a call as SVI passes it on, ``svi.step(x, y, dose=d)``; None is not
    given.

    What is positional has the name that each program gives it.
    """
    programs = (pair.model, pair.guide)
    given, fields = list(args), dict(kwargs)
    if not given:
        named = {
            name: fields.pop(name)
            for program in programs
            for name in program.positional[:1]
            if name in fields
        }
        given = list(named.values())[:1]
    if not given or not isinstance(given[0], Tensor) or not given[0].dim():
        what = f"is a {type(given[0]).__name__}" if given else "was not given"
        raise UserError(
            f"the programs' first argument, x, {what}: expected a tensor (B, *event_shape)"
        )
    for program in programs:
        names, values = program.positional[1:], given[1:]
        if len(values) > len(names):
            takes = ", ".join(program.positional) or "x"
            raise UserError(
                f"{len(given)} arguments were given, but the {program.role} takes {takes}: give "
                "the others by name"
            )
        for name, value in zip(names, values, strict=False):
            if fields.setdefault(name, value) is not value:
                raise UserError(
                    f"{name!r} is given twice, or is at another place in the model than in the "
                    "guide: give it by its name"
                )
    fields = {name: value for name, value in fields.items() if value is not None}
    return given[0], as_fields(fields, len(given[0]))
