"""Parameter stores for ``pyro.param``: a pair's own, or Pyro's."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_vae.errors import UserError
from pyro_vae.pair.module_state import randomness_kept


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
        """Run programs under this store instead of the global one; can be nested."""
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
        """As it is; in a dry run a copy with the same parameters, in a ``poutine.block``."""
        if self._entered or not in_dry_run():
            yield
            return
        self._entered, store = True, pyro.get_param_store()
        try:
            with randomness_kept(), poutine.block(), store.scope(store.get_state()):
                yield
        finally:
            self._entered = False


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
