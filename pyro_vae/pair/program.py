"""Program: one interface for a PyroModule, an nn.Module, a bound method, a function, a partial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import chain
from types import MethodType
from typing import Any

import pyro
from pyro.infer import ELBO, SVI
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.errors import UserError
from pyro_vae.fields import Part, argument_of, arguments
from pyro_vae.protocols import Local, hook


class Program:
    """A model or a guide, called on a batch: ``program(x, fields)``.

    ``x`` goes to the first parameter; of the named fields each program receives those that its
    signature names. One that takes ``**kwargs`` receives all that the caller gave, but ``index``,
    which is ours, only where it has a name for it, or is a guide whose ``local(x, **fields)`` may
    have one. ``**_`` takes none; where a module's ``forward`` passes its fields on, its method
    ``fields_go_to()`` returns the programs that read them.
    """

    def __init__(self, role: str, call: Callable[..., Any]) -> None:
        _refuse_other(role, call)
        self.role, self.call = role, call
        inner = _unwrapped(call)
        owner = (
            call
            if isinstance(call, nn.Module)
            else getattr(getattr(inner, "func", inner), "__self__", None)
        )
        self.owner = owner if isinstance(owner, nn.Module) else None
        own = [] if self.owner is None else [("", self.owner)]
        self.roots = [*own, *_referred(inner)]  # by the name that the program has for each
        self.modules = [module for _, each in self.roots for module in each.modules()]
        parameters = list(inspect.signature(inner).parameters.values())
        if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise UserError(
                f"the {role} takes no positional argument: its first parameter must be the batch x"
            )
        self.positional = tuple(
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        )
        named = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.field_names = frozenset(p.name for p in named)
        self._required = [p.name for p in named if p.default is inspect.Parameter.empty]
        # **_ is there for stock Pyro, which gives both programs the same arguments, and is not read
        self._takes_all = any(
            p.kind is p.VAR_KEYWORD and not p.name.startswith("_") for p in parameters
        )
        self.taken = self.field_names
        passed_to = hook(self.owner, "fields_go_to")
        if self._takes_all and passed_to and getattr(inner, "__name__", "") == "forward":
            reached = [
                each if isinstance(each, Program) else Program(role, each) for each in passed_to()
            ]
            self.taken = self.taken.union(*(each.taken for each in reached))
            self._takes_all = any(each._takes_all for each in reached)
        self._selected: dict[tuple[str, ...], set[str]] = {}  # by the names of what is given
        self._passes_index = isinstance(self.owner, Local)  # whose local takes all fields
        self._placed: dict[str, str] = {}  # what takes the place of another program's argument

    def take_places(self, other: Program) -> None:
        """Receive an argument of ``other`` as one that is in its place under a name of its own,
        as where Pyro gives both programs the same positional arguments.
        """
        for theirs, own in zip(other.positional[1:], self.positional[1:], strict=False):
            if own in self._required and not other.takes(own) and not self.takes(theirs):
                self._placed[theirs] = own

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Any:
        given = self.select(fields)
        if any(isinstance(name, Part) for name in given):
            given = arguments(given)
        placed = {own: given.pop(each) for each, own in self._placed.items() if each in given}
        return self.call(x, **{**placed, **given})

    def select(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fields that the program gets; a ``UserError`` if a required one was not given."""
        if (names := tuple(fields)) not in self._selected:
            given = {name: argument_of(name) for name in names}
            at_hand = {*given.values()}
            at_hand |= {own for theirs, own in self._placed.items() if theirs in at_hand}
            if missing := [name for name in self._required if name not in at_hand]:
                known = ", ".join(sorted(at_hand)) or "none"
                raise UserError(
                    f"the {self.role} requires the field {missing[0]!r}, which was not given "
                    f"(given fields: {known}): pass {missing[0]}=…, with one row for each image"
                )
            self._selected[names] = {n for n, argument in given.items() if self.receives(argument)}
        taken = self._selected[names]  # a name may be a `Part`, whose constant is this call's own
        return {name: value for name, value in fields.items() if name in taken}

    def receives(self, argument: str) -> bool:
        """Whether the program is given this argument, where there is one."""
        own_index = argument != "index" or self.wants(argument) or self._passes_index
        return self.takes(argument) and own_index

    def takes(self, argument: str) -> bool:
        """Whether the program's signature has this argument, or takes all."""
        return argument in self.taken or argument in self._placed or self._takes_all

    def owns(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter belongs to the program's own module."""
        return self.owner is not None and any(parameter is each for each in self.owner.parameters())

    def wants(self, field: str) -> bool:
        """Whether the signature names this field itself."""
        return field in self.field_names


def _refuse_other(role: str, call: Any) -> None:
    """A ``UserError`` for what is no program."""
    if not callable(call) or isinstance(call, Distribution | SVI | ELBO):
        raise UserError(
            f"the {role} must be callable (a PyroModule, a method or a function), got "
            f"{type(call).__name__}"
        )
    if inspect.isclass(call):
        raise UserError(
            f"the {role} is the class {call.__name__}, not an instance of it: call it with "
            "its arguments first"
        )
    if getattr(type(call), "forward", None) is nn.Module.forward:
        raise UserError(
            f"the {role} is a {type(call).__name__}, a module without a forward: give the "
            "method that is the program, as in fit(vae.model, vae.guide, x)"
        )


def handled(call: Callable[..., Any]) -> tuple[Any, ...]:
    """(handler, program, object if it is a method) of a program in one of Pyro's handlers, or its
    decorators; else none.
    """
    args = call.args if isinstance(call, partial) else ()
    return args if args and isinstance(args[0], Messenger) else ()


def _unwrapped(call: Callable[..., Any]) -> Callable[..., Any]:
    """What a handler (``poutine.scale(model)``), a decorator or a ``partial`` runs: its signature
    names the fields.
    """
    if parts := handled(call):
        inner = _unwrapped(parts[1])
        return MethodType(inner, *parts[2:]) if parts[2:] else inner
    if inspect.ismethod(call):  # which has its function's __wrapped__, that is of no object
        return MethodType(inspect.unwrap(call.__func__), call.__self__)
    call = inspect.unwrap(call)
    if isinstance(call, partial):
        return partial(_unwrapped(call.func), *call.args, **call.keywords)
    return call.forward if isinstance(call, nn.Module) else call


def _referred(
    call: Callable[..., Any], known: frozenset[int] = frozenset()
) -> list[tuple[str, nn.Module]]:
    """The modules that a function names, in its closure or globally, and those that a ``partial``
    has, each with that name.

    A run meets what it calls; this finds what a later one may: a parameter of train mode, of a
    later epoch.
    """
    function = getattr(call, "__func__", call)
    if isinstance(call, partial):
        named = [("", call.func), *((str(i), each) for i, each in enumerate(call.args))]
        named += call.keywords.items()
    elif inspect.isfunction(function) and id(function) not in known:
        found = inspect.getclosurevars(function)
        named = [
            *found.nonlocals.items(),
            *((name, v) for name, v in found.globals.items() if isinstance(v, nn.Module)),
        ]
    else:
        return []
    known |= {id(function)}
    inner = (
        _referred(each, known)
        for _, each in named
        if isinstance(each, partial) or inspect.isroutine(each)
    )
    own = [(name, each) for name, each in named if isinstance(each, nn.Module)]
    return [*own, *chain.from_iterable(inner)]


class WithoutScales(Messenger):
    """Inside: no ``poutine.scale`` has an effect; the plain densities."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


@contextmanager
def without_scales(ignored: bool) -> Iterator[None]:
    """Inside, scales are without effect where that is asked for."""
    token = _unscaled.set(ignored or _unscaled.get())
    try:
        with WithoutScales() if ignored else nullcontext():
            yield
    finally:
        _unscaled.reset(token)


def scales_ignored() -> bool:
    """Whether programs run without their scales."""
    return _unscaled.get()


_unscaled: ContextVar[bool] = ContextVar("_unscaled", default=False)


def validation(*, distributions: bool) -> AbstractContextManager[None]:
    """Pyro's checks of programs off, those of distributions' arguments and values as asked;
    restored on leaving.
    """
    context: AbstractContextManager[None] = pyro.settings.context(
        validate_poutine=False,
        validate_infer=False,
        validate_distributions_pyro=distributions,
        validate_distributions_torch=distributions,
    )
    return context
