"""The registry: a choice is parsed (`specs`), found (`lookup`), its arguments are checked, and the
part is built.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pyro_vae.choices.lookup import (
    NAMESPACES,
    belongs,
    checked,
    kind_of,
    resolve,
    slot_of,
    slots_by_name,
    wanted,
)
from pyro_vae.choices.specs import Choice, parse
from pyro_vae.choices.user_code import load_named
from pyro_vae.errors import UserError, did_you_mean, one_line
from pyro_vae.protocols import hook

OF_EVERY_NET = ("missing", "mask_channel")
"""Arguments that every network takes, as an encoder."""

PROGRAM_SLOTS = ("model", "prior", "likelihood", "guide")
"""An argument of such a name is built from a bare name too. ``net=Conv`` stays a name: the part
knows the shapes.
"""


def build(slot: str, spec: Any, /, **context: Any) -> Any:
    """Construct the part that ``spec`` (a string, a `Choice` or a class) names; anything else is a
    part already.

    An argument is filled by name: what ``spec`` says first, else ``context``, if the constructor's
    signature names it. A part that passes ``**net_args`` on to its ``net`` takes the arguments of
    the chosen network as its own, and ``net=MLP(hidden=(200,))`` is ``net=MLP, hidden=(200,)``.
    Nested choices are built with the same context, in the slot that the argument is named after,
    else in the one that has the name; a part with a static method ``context_of(argument, values,
    context)`` chooses the context of each of its arguments. Arguments are given to classes alone
    that name their slot (optimisers: torch's); a Pyro program that is named without any is returned
    as it is. A slot whose namespace has a function ``adopt`` makes its parts of other objects by
    it: an objective of Pyro's own ELBO.

    Raises:
        UserError: for an unknown name, an unknown, doubled, missing or unusable argument.
    """
    choice = parse(spec) if isinstance(spec, str) else spec
    if isinstance(choice, Choice):
        return _adopted(slot, _build(slot, resolve(slot, choice.name), choice, context))
    part = _adopted(slot, choice)
    if isinstance(part, type):
        return _construct(slot, checked(slot, part.__name__, part), Choice(part.__name__), context)
    return part


@dataclass(frozen=True, eq=False)
class Call:
    """How a part was constructed: ``made = part(**arguments)``."""

    made: Any
    part: Any
    arguments: Mapping[str, Any]


_calls: ContextVar[list[Call] | None] = ContextVar("_calls", default=None)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """How every part is constructed inside, the inner ones first."""
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def _adopted(slot: str, part: Any) -> Any:
    adopt = (
        getattr(importlib.import_module(NAMESPACES[slot]), "adopt", None)
        if slot in NAMESPACES
        else None
    )
    return part if adopt is None else adopt(part)


def _build(slot: str, part: Any, choice: Choice, context: Mapping[str, Any]) -> Any:
    if (choice.args or choice.kwargs) and not belongs(slot, part):
        raise UserError(
            f"{slot} {choice}: {kind_of(part)} takes no arguments here; expected {wanted(slot)}"
        )
    if not isinstance(part, type):
        return part
    return _construct(slot, part, choice, context)


def _construct(
    slot: str, part: Callable[..., Any], choice: Choice, context: Mapping[str, Any]
) -> Any:
    label = f"{slot} {choice}"
    named, is_open = _signature(part)
    known, default = list(named), next(_net_defaults(part), None) if is_open else None
    written = unpack_net(label, _by_name(label, named, choice))
    of_net = {}
    if "net" in context and "net" not in written:
        of_net = unpack_net(label, {"net": context["net"]})
    if default is not None:  # it passes what it does not name on to its network
        own, is_open = _net_arguments({"net": default, **context, **of_net, **written}["net"])
        known += [name for name in ("net", *own) if name not in named]
    if not is_open:
        _refuse_unknown(label, written, known)
    offered = dict(context)
    if "net" in known:  # what takes no network takes none of its arguments either
        offered |= of_net
        _refuse_unknown(f"net {context.get('net')} of {label}", of_net, known)
    values = {name: offered[name] for name in known if name in offered} | written
    required = [name for name, each in named.items() if each.default is each.empty]
    missing = [name for name in required if name not in values]
    if missing:
        there = ", ".join(sorted(context)) or "nothing"
        raise UserError(
            f"{label} needs {', '.join(missing)}: write {missing[0]}=... (known here: {there})"
        )
    # a part may build what it has in another context than its own: a decoder that also receives a
    # class has more inputs
    inner = hook(part, "context_of") or (lambda argument, values, context: context)
    built = {
        name: _build_argument(name, value, inner(name, values, context))
        for name, value in values.items()
    }
    try:
        made = part(**built)
        if (calls := _calls.get()) is not None:
            calls.append(Call(made, part, built))
        return made
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{label}: {one_line(error)}") from error


def _by_name(label: str, named: Mapping[str, inspect.Parameter], choice: Choice) -> dict[str, Any]:
    """What the choice says, by name."""
    positional = [name for name, each in named.items() if each.kind is not each.KEYWORD_ONLY]
    if len(choice.args) > len(positional):
        expected = ", ".join(positional) or "none"
        raise UserError(f"{label}: too many arguments without a name (in order: {expected})")
    first = dict(zip(positional, choice.args, strict=False))
    _refuse_twice(label, first, choice.kwargs)
    return first | choice.kwargs


def _signature(part: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The arguments that it names, and whether it takes any other."""
    try:
        every = inspect.signature(part).parameters
    except (TypeError, ValueError):
        raise UserError(f"{part!r} has no signature by which it can be built") from None
    kinds = {each.kind for each in every.values()}
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: each for name, each in every.items() if each.kind not in several}
    return named, several[0] in kinds


def _net_defaults(part: Any) -> Iterator[Any]:
    """The default of ``net`` in the part's constructor and in its bases', to which it passes
    ``**kwargs`` on.
    """
    for base in inspect.getmro(part) if isinstance(part, type) else (part,):
        if base is part or hook(base, "slot"):
            named, _ = _signature(base)
            yield from (named[name].default for name in ("net",) if name in named)


def _net_arguments(net: Any) -> tuple[list[str], bool]:
    """The names of a network's own arguments (the shapes come from the part), and whether it takes
    any other.
    """
    network = resolve("net", net) if isinstance(net, str) else net
    if not isinstance(network, type):
        # one that is ready has its arguments; of None nothing is known
        return list(OF_EVERY_NET), network is None
    named, is_open = _signature(network)
    own = [name for name in named if name not in ("in_shape", "out_shape")]
    return [*own, *OF_EVERY_NET], is_open


def unpack_net(label: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``net=MLP(hidden=(200,))`` as ``net=MLP, hidden=(200,)``: the part adds the shapes and builds
    it.
    """
    net = values.get("net")
    if isinstance(net, str) and "(" in net:
        net = parse(net)
    if not isinstance(net, Choice):
        return dict(values)
    if net.args:
        raise UserError(f"{label}: write the arguments within net={net}")
    known, is_open = _net_arguments(net.name)
    if not is_open:
        name = getattr(net.name, "__name__", net.name)  # a class serves as well
        _refuse_unknown(f"net {name}", net.kwargs, known)
    _refuse_twice(label, net.kwargs, values)
    return {**values, **net.kwargs, "net": net.name}


def _refuse_unknown(label: str, written: Iterable[str], known: Iterable[str]) -> None:
    for name in written:
        if name not in known:
            raise UserError(did_you_mean(f"argument of {label}", name, known))


def _refuse_twice(label: str, first: Iterable[str], second: Mapping[str, Any]) -> None:
    for name in first:
        if name in second:
            raise UserError(f"{label}: {name} is given twice")


def _build_argument(name: str, value: Any, context: Mapping[str, Any]) -> Any:
    """The argument ``name``, with the choices in it built. A part is not offered itself: the
    context loses ``name``.
    """
    if isinstance(value, list | tuple):
        items = [
            _build_argument(name, item, context) if isinstance(item, Choice) else item
            for item in value
        ]
        # a torch.Size or a named tuple is left as it is
        return type(value)(items) if type(value) in (list, tuple) else value
    rest = {key: other for key, other in context.items() if key != name}
    if name in PROGRAM_SLOTS and isinstance(value, str | type | Choice):
        return build(name, value, **rest)
    if not isinstance(value, Choice):
        return value
    if name in NAMESPACES:
        return build(name, value, **rest)
    slot, part = _find_anywhere(name, value.name)
    return _build(slot, part, value, rest)


def _find_anywhere(argument: str, name: str) -> tuple[str, Any]:
    """The slot and the part of a nested choice whose argument has no slot's name."""
    if ":" in name:
        part = load_named(name)
        slot = slot_of(part)
        if slot is None or not isinstance(part, type):
            raise UserError(
                f"{argument}={name}(...): {name} is {kind_of(part)}, not a class that names its "
                "slot"
            )
        return slot, checked(slot, name, part)
    known = slots_by_name()
    slots = known.get(name, [])
    if len(slots) > 1:
        raise UserError(
            f"{argument}={name}(...) is ambiguous: {name} is a part of the slots "
            f"{' and '.join(slots)}"
        )
    if not slots:
        raise UserError(did_you_mean(f"part for {argument}", name, known))
    return slots[0], resolve(slots[0], name)
