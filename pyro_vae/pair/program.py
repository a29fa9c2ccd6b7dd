"""One adapter for every program: a PyroModule, an nn.Module, a bound method, a function or a
closure.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import chain
from types import MethodType
from typing import Any

import pyro
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.poutine.messenger import Messenger
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to

from pyro_vae.errors import UserError
from pyro_vae.fields import argument_of, arguments
from pyro_vae.protocols import Local, hook


class ParameterStore(Messenger):
    """The private parameter store of one pair, as a handler of ``pyro.param`` statements.

    An ``nn.Parameter`` that a module offers is always its own value, so that equal names in model
    and guide, or in an earlier model of the process, never meet. Everything else (``pyro.param("a",
    init)``) lives here, unconstrained, and is shared by name between model and guide as in Pyro.
    The global store stays empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, nn.Parameter] = {}
        self.constraints: dict[str, constraints.Constraint] = {}
        self.may_create = True
        self.before: frozenset[str] = frozenset()  # the names before a dry run
        # by name, what a file has for parameters that the programs have not made yet
        self.waiting: dict[str, tuple[Tensor, Callable[[Tensor, str], None]]] = {}
        self._entered = False
        self.seen: dict[str, nn.Parameter] = {}

    def _pyro_param(self, msg: Any) -> None:
        name, arguments = msg["name"], msg["args"]
        offered = arguments[1] if len(arguments) > 1 else msg["kwargs"].get("init_tensor")
        if isinstance(offered, nn.Parameter):
            self.seen[name] = offered
            msg["value"], msg["done"] = offered, True
        elif name in self.parameters:
            msg["value"], msg["done"] = self._constrained(name), True
        elif offered is not None:
            self._create(name, offered, msg["kwargs"].get("constraint", constraints.real))
            msg["value"], msg["done"] = self._constrained(name), True
        # else: a PyroParam, which the module has just put into the scoped store, from where Pyro
        # reads it

    def _create(
        self, name: str, init: Tensor | Callable[[], Tensor], constraint: constraints.Constraint
    ) -> None:
        if self.waiting and name not in self.waiting:
            raise UserError(
                f"the programs use pyro.param({name!r}), which is not in the loaded file: load "
                "the file into the pair that it was saved from"
            )
        if not self.may_create and not self.waiting:
            raise UserError(
                f"pyro.param({name!r}) does not exist yet, and an evaluation never initialises "
                "parameters: first fit this same pair of model and guide"
            )
        value = init() if callable(init) else init
        unconstrained = transform_to(constraint).inv(value).detach().clone()
        if self.waiting:
            held, check = self.waiting[name]
            check(unconstrained, str(constraint))
            unconstrained = held.to(unconstrained.device, copy=True)
        self.parameters[name] = nn.Parameter(unconstrained)
        self.constraints[name] = constraint

    def refuse_left(self) -> None:
        """A ``UserError`` where what a file has waits for a parameter that no program has made."""
        left = sorted(self.waiting.keys() - self.parameters.keys())
        if left:
            raise UserError(
                f"the file that was loaded has pyro.param({left[0]!r}), which no program uses: "
                "load the file into the pair that it was saved from"
            )
        self.waiting = {}

    def forget_new(self) -> None:
        """Leave no parameter that a dry run has made."""
        for name in self.parameters.keys() - self.before:
            del self.parameters[name], self.constraints[name]

    def _constrained(self, name: str) -> Tensor:
        unconstrained = self.parameters[name]
        self.seen[name] = unconstrained
        value: Tensor = transform_to(self.constraints[name])(unconstrained)
        value.unconstrained = weakref.ref(unconstrained)  # type: ignore[attr-defined]  # Pyro's handle on a parameter
        return value

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run programs under this store, the global one being hidden; may be entered again inside."""
        if self._entered:
            yield
            return
        self._entered = True
        try:
            with pyro.get_param_store().scope(), self, warnings.catch_warnings():
                # pyro.module warns of frozen parameters, which this store has no need to register
                warnings.filterwarnings("ignore", message=".*was not registered in the param store")
                yield
        finally:
            self._entered = False


class PyrosStore(ParameterStore):
    """Pyro's own global store, as stock SVI uses it. A dry run leaves no mark there, nor on
    handlers or random numbers.
    """

    @contextmanager
    def scope(self) -> Iterator[None]:
        """As it is; in a dry run a copy that has the same parameters, behind a ``poutine.block``."""
        if self._entered or not in_dry_run():
            yield
            return
        store, random_state = pyro.get_param_store(), get_rng_state()  # Python's and NumPy's too
        self._entered = True
        try:
            with poutine.block(), store.scope(store.get_state()):
                yield
        finally:
            self._entered = False
            set_rng_state(random_state)


class Program:
    """A model or a guide, called on a batch: ``program(x, fields)``.

    ``x`` goes to the first parameter; of the named fields each program receives those that its
    signature names. One that takes ``**kwargs`` receives all that the caller gave, but ``index``,
    which is ours, only where it has a name for it, or is a guide whose ``local(x, **fields)`` may
    have one. ``**_`` takes none; where a module's ``forward`` passes its fields on, its method
    ``fields_go_to()`` returns the programs that read them.
    """

    def __init__(self, role: str, call: Callable[..., Any]) -> None:
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
        self._passes_index = isinstance(self.owner, Local)  # whose local takes all fields
        self._placed: dict[str, str] = {}  # what takes the place of another program's argument

    def take_places(self, other: Program) -> None:
        """Receive an argument of ``other`` as one that stands in its place under a name of its own,
        as where Pyro gives both programs the same positional arguments.
        """
        for theirs, own in zip(other.positional[1:], self.positional[1:], strict=False):
            if own in self._required and not other.takes(own) and not self.takes(theirs):
                self._placed[theirs] = own

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Any:
        given = arguments(self.select(fields))
        placed = {own: given.pop(each) for each, own in self._placed.items() if each in given}
        return self.call(x, **{**placed, **given})

    def select(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fields that the program receives; a ``UserError`` where a required one was not given."""
        given = set(map(argument_of, fields))
        given |= {own for theirs, own in self._placed.items() if theirs in given}
        if missing := [name for name in self._required if name not in given]:
            known = ", ".join(sorted(given)) or "none"
            raise UserError(
                f"the {self.role} requires the field {missing[0]!r}, which was not given (given "
                f"fields: {known}): pass {missing[0]}=…, with one row for each image"
            )
        return {name: value for name, value in fields.items() if self.receives(argument_of(name))}

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
    holds, each with that name.

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
    """Inside, no site has a scale, whatever ``poutine.scale`` a program is in: its plain densities."""

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
_dry: ContextVar[bool] = ContextVar("_dry", default=False)


@contextmanager
def dry_run() -> Iterator[None]:
    """Inside, programs are run to be understood alone, and nothing is made of their draws."""
    token = _dry.set(True)
    try:
        yield
    finally:
        _dry.reset(token)


def in_dry_run() -> bool:
    """Whether a program is being run to be understood: what it refuses to score it may then still
    show the shape of.
    """
    return _dry.get()


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
