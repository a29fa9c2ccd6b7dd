"""The signatures of the programs, and the named fields that they take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from pyro_vae.errors import UserError, nearest
from pyro_vae.fields import argument_of, merged
from pyro_vae.pair.program import Program
from pyro_vae.tensors import marked

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def takes_fields(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function of ``model`` and ``guide`` with ``**fields`` refuse a field that neither
    takes.

    A program that has ``**kwargs`` takes every field; ``index`` may always be given, as it is made
    where it is not. A field ``mask`` that no program names marks x: NaN where it is False. Without
    the check a misspelt option (``epochs=3``) is taken for a field, and a
    field that nobody reads seems to be used.
    """
    signature = inspect.signature(function)
    options = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        fields = merged({name: value for name, value in kwargs.items() if name not in options})
        if given := {argument_of(name) for name in fields} - {"index"}:
            held = signature.bind_partial(*args, **kwargs).arguments
            programs = [
                Program(role, held[role])
                for role in ("model", "guide")
                if held.get(role) is not None
            ]
            free = "mask" in given and not any(program.takes("mask") for program in programs)
            if free and {"x", "x_train"} & held.keys():
                args, kwargs = _marked(signature, args, kwargs, options)
                given -= {"mask"}
            for name in sorted(given):
                if not any(program.takes(name) for program in programs):
                    known = sorted(
                        {name for each in programs for name in each.taken - {"index", "size"}}
                    )
                    raise UserError(_refusal(function.__name__, name, options, known))
        return function(*args, **kwargs)

    return checked


def _marked(
    signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any], options: Iterable[str]
) -> Any:
    """The call with x marked by the field ``mask``, and so the images of a validation set."""
    fields = merged({name: value for name, value in kwargs.items() if name not in options})
    held = signature.bind_partial(
        *args,
        **{name: value for name, value in kwargs.items() if name in options},
        **{name: value for name, value in fields.items() if name != "mask"},
    )
    given = held.arguments
    for name in given.keys() & {"x", "x_train"}:
        given[name] = marked(given[name], fields["mask"])
    valid = given.get("x_valid")
    if isinstance(valid, Mapping) and "mask" in valid:
        rest = {name: value for name, value in valid.items() if name != "mask"}
        given["x_valid"] = {**rest, "x": marked(valid["x"], valid["mask"])}
    return held.args, held.kwargs


def _refusal(function: str, name: str, options: Iterable[str], fields: list[str]) -> str:
    taken = f"they take {', '.join(fields)}" if fields else "they take none"
    near = nearest(name, [*options, *fields], cutoff=0.75)
    remedy = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"give the model or the guide a parameter {name}, or leave it out"
    )
    return (
        f"{function} has no argument {name!r}, and neither program takes a field of this name "
        f"({taken}): {remedy}"
    )
