"""The registry is the namespace: a part is chosen by its name in a namespace's ``__all__``, written
as a call.

``IAF(depth=4)``, ``Gaussian(scale=learned)``, ``my_lab.guides:Mine(depth=2)`` and
``path/to/file.py:Mine`` are choices. `parse` reads one without evaluating it, `resolve` finds the
class, `build` constructs the part and fills by name what the choice leaves open. This module
imports torch only when a name is looked up, so that ``pyro-vae --help`` is quick.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import keyword
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.protocols import hook

NAMESPACES: dict[str, str] = {
    "model": "pyro_vae.models",
    "prior": "pyro_vae.models",
    "likelihood": "pyro_vae.models",
    "guide": "pyro_vae.guides",
    "objective": "pyro_vae.objectives",
    "net": "pyro_vae.nn",
    "optimizer": "torch.optim",
    "schedule": "pyro_vae.training.schedules",
    "warmup": "pyro_vae.training.kl_warmup",
    "data": "pyro_vae.data.datasets",
    "proposal": "pyro_vae.evaluation.proposals",
}
"""Where the parts of each slot live. Another package offers parts as entry points in the group
``pyro_vae.<slot>``.
"""

PROGRAM_SLOTS = ("model", "prior", "likelihood", "guide")
"""An argument of such a name is built from a bare name too. ``net=Conv`` stays a name: the part
knows the shapes.
"""

PROGRAMS = ("model", "guide")
"""Any Pyro program serves in these slots; in the others a class that names its slot (see
`_checked`).
"""

UNSUITABLE = ("LBFGS", "Muon", "SparseAdam")
"""Optimisers that need many losses a step, matrices alone, or sparse gradients."""

MAX_LENGTH, MAX_DEPTH = 2000, 20
"""More than any choice needs, and less than Python's parser breaks on."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading a choice


@dataclass(frozen=True)
class Choice:
    """A choice as read: a part's name, and arguments that are plain values, lists, tuples or
    choices.

    ``str(choice)`` writes it again: ``parse(str(choice)) == choice``.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return _write_call(self) if self.args or self.kwargs else self.name


def parse(spec: str) -> Choice:
    """Read ``Name``, ``module.sub:Name`` or ``file.py:Name``, alone or called, without evaluating
    anything.

    Arguments are numbers (``inf`` too), strings, ``True``, ``False``, ``None``, lists and tuples of
    values, nested calls (a `Choice`), and bare names (a string: ``learned``). A path has none of
    ``()[]{},='"``.

    Raises:
        UserError: for all else, with the spec and the position.
    """
    return _Reader(spec.strip()).choice()


# a colon is no part of the grammar but in strings and references, so one pass over the text tells
# them apart
_TOKENS = re.compile(
    r"""(?P<refused>'{3}|"{3}|\#)
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<reference>[^\s()\[\]{},='":\#][^()\[\]{},='"]*:[^\W\d]\w*)""",
    re.VERBOSE,
)
_CONSTANTS = (bool, int, float, str, type(None))
_GRAMMAR = "a choice is a name or a call with plain values, IAF(depth=4); module:Name and file.py:Name are names too"


class _Reader:
    """One spec on its way to a `Choice`. A reference is masked by underscores, which keeps every
    position.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.references: dict[int, str] = {}
        if len(spec) > MAX_LENGTH:
            raise self.refusal(f"it is longer than {MAX_LENGTH} characters", MAX_LENGTH)
        if not spec.isprintable():
            position = next(i for i, character in enumerate(spec) if not character.isprintable())
            raise self.refusal(f"{spec[position]!r} is not allowed", position)
        self.source = _TOKENS.sub(self._mask, spec)

    def refusal(self, what: str, position: int) -> UserError:
        shown = self.spec if len(self.spec) <= 100 else self.spec[:97] + "..."
        return UserError(f"cannot read {shown!r}, position {position + 1}: {what}; {_GRAMMAR}")

    def _mask(self, token: re.Match[str]) -> str:
        text = token.group()
        if token["refused"]:
            raise self.refusal(f"{text!r} is not allowed", token.start())
        if not token["reference"]:
            return text
        if not _is_reference(text):
            raise self.refusal(
                f"before the colon of {text!r} is neither a module nor a .py file", token.start()
            )
        self.references[token.start()] = text
        return "_" * len(text)

    def choice(self) -> Choice:
        node = self._tree()
        try:
            if isinstance(node, ast.Name):
                return Choice(self._name(node))
            if isinstance(node, ast.Call):
                return self._call(node, 0)
        except RecursionError:
            raise self.refusal("it is nested too deeply", 0) from None
        raise self._unexpected(node)

    def _tree(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "error"
                )  # an unknown escape in a string is a mistake, and never printed about
                return ast.parse(self.source, mode="eval").body
        except SyntaxError as error:
            raise self.refusal(error.msg, max((error.offset or 1) - 1, 0)) from None
        except (ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise self.refusal(str(error) or "it is nested too deeply", 0) from None

    def _position(self, node: ast.expr) -> int:
        return len(self.source.encode()[: node.col_offset].decode())  # ast counts bytes

    def _unexpected(self, node: ast.expr) -> UserError:
        start = self._position(node)
        end = len(self.source.encode()[: node.end_col_offset].decode())
        return self.refusal(f"{self.spec[start:end][:40]!r} is not allowed", start)

    def _name(self, node: ast.Name) -> str:
        return self.references.get(self._position(node), node.id)

    def _call(self, node: ast.Call, depth: int) -> Choice:
        if not isinstance(node.func, ast.Name):
            raise self._unexpected(node.func)
        kwargs: dict[str, Any] = {}
        for item in node.keywords:
            if item.arg is None or item.arg in kwargs:
                what = "'**' is not allowed" if item.arg is None else f"{item.arg} is given twice"
                raise self.refusal(what, self._position(item.value))
            kwargs[item.arg] = self._value(item.value, depth + 1)
        return Choice(
            self._name(node.func), tuple(self._value(item, depth + 1) for item in node.args), kwargs
        )

    def _value(self, node: ast.expr, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.refusal(f"it is nested more than {MAX_DEPTH} deep", self._position(node))
        match node:
            case ast.Call():
                return self._call(node, depth)
            case ast.List():
                return [self._value(item, depth + 1) for item in node.elts]
            case ast.Tuple():
                return tuple(self._value(item, depth + 1) for item in node.elts)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() | ast.Name(id="inf")):
                number = self._atom(node.operand)
                if isinstance(number, int | float) and not isinstance(number, bool):
                    return -number
        return self._atom(node)

    def _atom(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return float("inf") if node.id == "inf" else self._name(node)
        if not isinstance(node, ast.Constant) or not isinstance(node.value, _CONSTANTS):
            raise self._unexpected(node)
        if isinstance(node.value, int) and node.value.bit_length() > 64:
            raise self.refusal("the number is too large", self._position(node))
        return node.value


def _is_reference(text: str) -> bool:
    """Whether ``text`` is ``file.py:Name`` or ``module.sub:Name``."""
    place, _, _ = text.rpartition(":")
    words = place.split(".")
    return place.endswith(".py") or all(
        word.isidentifier() and not keyword.iskeyword(word) for word in words
    )


def _write_call(choice: Choice) -> str:
    named = (f"{name}={_write(value)}" for name, value in choice.kwargs.items())
    return f"{choice.name}({', '.join([*map(_write, choice.args), *named])})"


def _write(value: Any) -> str:
    """A value as `parse` reads it. What is not in the grammar (a default of a signature) is shown
    by its name.
    """
    match value:
        case Choice():
            return _write_call(value)  # with its brackets, for a bare name would be a string
        case str():
            bare = (
                value.isidentifier()
                and value.isascii()
                and not keyword.iskeyword(value)
                and value != "inf"
            )
            return value if bare else repr(value)
        case list():
            return f"[{', '.join(map(_write, value))}]"
        case tuple():
            return f"({', '.join(map(_write, value))}{',' * (len(value) == 1)})"
    return str(getattr(value, "__name__", None) or repr(value))


# ---------------------------------------------------------------------------------------------------------------------
# Finding a part


def members(slot: str) -> dict[str, Any]:
    """The parts of the slot's own namespace, by name: the concrete classes of that slot (for data,
    the known sets).
    """
    if slot not in NAMESPACES:
        raise UserError(did_you_mean("slot", slot, NAMESPACES))
    namespace = importlib.import_module(NAMESPACES[slot])
    if slot == "data":
        return dict(namespace.DATASETS)
    parts = {name: getattr(namespace, name) for name in namespace.__all__}
    return {name: part for name, part in parts.items() if _belongs(slot, part)}


def resolve(slot: str, name: str) -> Any:
    """The part that ``name`` stands for: a member, an installed entry point, ``module:Name`` or
    ``file.py:Name``.

    The latter two import what they name: this is the one place that runs the user's code. What they
    name is looked at,
    and nothing of it is called: it is a part of this slot, or it is refused. A member is found in
    lower case too (``cosine``).

    Raises:
        UserError: if there is none, it is no part of this slot, or importing it fails.
    """
    own = members(slot)
    if name in own:
        return own[name]
    for entry in _entries(slot):
        if entry.name == name:
            return _checked(slot, name, _guarded(entry.load, f"the entry point {entry.value}"))
    if ":" in name:
        return _checked(slot, name, _load(name))
    alike = [
        part for member, part in own.items() if member.lower() == name.lower()
    ]  # schedule="cosine"
    if len(alike) == 1:
        return alike[0]
    elsewhere = _slots_by_name().get(name)
    if elsewhere:
        choices = ", ".join(sorted(_names(slot))) or "none"
        raise UserError(
            f"{name} belongs to the slot {' and '.join(elsewhere)}, not to {slot}; choices: "
            f"{choices}"
        )
    raise UserError(did_you_mean(slot, name, _names(slot)))


def installed(slot: str) -> list[str]:
    """The names that other packages offer for the slot, as entry points."""
    return [entry.name for entry in _entries(slot)]


def _entries(slot: str) -> Iterable[EntryPoint]:
    return entry_points(group=f"pyro_vae.{slot}")


def _belongs(slot: str, part: Any) -> bool:
    if not isinstance(part, type) or inspect.isabstract(part):
        return False
    return _is_optimizer(part) if slot == "optimizer" else hook(part, "slot") == slot


def _is_optimizer(part: type) -> bool:
    """A class of torch's, or of the user's."""
    from torch import optim

    return (
        issubclass(part, optim.Optimizer)
        and part is not optim.Optimizer
        and part.__name__ not in UNSUITABLE
    )


def _names(slot: str) -> list[str]:
    return [*members(slot), *installed(slot)]


def _slots_by_name() -> dict[str, list[str]]:
    """The slots in which each name is known; a namespace that cannot be imported has none."""
    found: dict[str, list[str]] = {}
    for slot in NAMESPACES:
        with suppress(ImportError):
            for name in _names(slot):
                found.setdefault(name, []).append(slot)
    return found


def _checked(slot: str, name: str, part: Any) -> Any:
    """``part``, refused if it is no part of the slot: a class that names it, an object of such a
    class, or a program.
    """
    if _belongs(slot, part):
        return part
    if isinstance(part, type) and inspect.isabstract(part):
        missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
        raise UserError(f"{slot} {name} is abstract: give it {missing}")
    own = _slot_of(part)
    if own is not None and own != slot:
        raise UserError(f"{name} belongs to the slot {own}, not to {slot}")
    if (own is None and _serves(slot, part)) or (own == slot != "optimizer"):
        return part
    raise UserError(f"{slot} {name} is {_kind_of(part)}, not {_wanted(slot)}")


def _slot_of(part: Any) -> str | None:
    """The slot that a class names, or the class of an object."""
    own = hook(part if isinstance(part, type) else type(part), "slot")
    return own if isinstance(own, str) and own in NAMESPACES else None


def _serves(slot: str, part: Any) -> bool:
    """Whether what names no slot is what is asked for: a Pyro program, or a loader of data."""
    if slot in PROGRAMS:
        from torch import nn

        module = (
            issubclass(part, nn.Module) if isinstance(part, type) else isinstance(part, nn.Module)
        )
        return (
            module or inspect.isfunction(part) or isinstance(part, partial)
        )  # as what Pyro's handlers make is
    if slot != "data" or not inspect.isfunction(part):
        return False
    return [
        p.name for p in inspect.signature(part).parameters.values() if p.default is p.empty
    ] == ["source"]


def _kind_of(part: Any) -> str:
    """In words, without calling anything of it."""
    if isinstance(part, type):
        return (
            "a class that names no slot"
            if _slot_of(part) is None
            else f"a class of the slot {_slot_of(part)}"
        )
    return (
        "a function" if inspect.isroutine(part) else f"an object of the class {type(part).__name__}"
    )


def _wanted(slot: str) -> str:
    if slot == "optimizer":
        return "a subclass of torch.optim.Optimizer that takes one loss a step"
    if slot == "data":
        return "a Python function of one argument, source, that returns ImageData"
    own = f'a class with slot = "{slot}"'
    return (
        f"{own}, or a Pyro program (a Python function or nn.Module) without arguments"
        if slot in PROGRAMS
        else own
    )


def _load(reference: str) -> Any:
    """The object that ``module:Name`` or ``file.py:Name`` names."""
    place, _, name = reference.rpartition(":")
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(did_you_mean(f"name in {place}", name, public))
    return getattr(module, name)


def _load_module(place: str) -> Any:
    if place.endswith(".__main__"):
        raise UserError(
            f"{place} is a program, which is run when it is imported: name a module of parts"
        )
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise UserError(
                f"no module {error.name!r}: install it, or write path/to/file.py:Name"
            ) from None
        raise _import_failure(place, error) from error
    except Exception as error:
        raise _import_failure(place, error) from error


def _load_file(place: str) -> Any:
    """The file as a module, once per process, under a name of its own (so that its classes can be
    pickled).
    """
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"no file {place!r} (looked for {str(path)!r})")
    name = f"pyro_vae_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{place!r} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    execute = spec.loader.exec_module
    try:
        _guarded(lambda: execute(module), place)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _guarded(load: Callable[[], Any], place: str) -> Any:
    try:
        return load()
    except Exception as error:
        raise _import_failure(place, error) from error


def _import_failure(place: str, error: Exception) -> UserError:
    """The error of the user's code in one line, with the line where it arose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = (
        ""
        if isinstance(error, SyntaxError)
        else f" ({Path(frame.filename).name}, line {frame.lineno})"
    )
    return UserError(f"importing {place} failed: {type(error).__name__}: {_one_line(error)}{where}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# ---------------------------------------------------------------------------------------------------------------------
# Building a part


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
        return _construct(slot, _checked(slot, part.__name__, part), Choice(part.__name__), context)
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
    if (choice.args or choice.kwargs) and not _belongs(slot, part):
        raise UserError(
            f"{slot} {choice}: {_kind_of(part)} is given no arguments; expected {_wanted(slot)}"
        )
    if not isinstance(part, type):
        return part
    return _construct(slot, part, choice, context)


def _construct(
    slot: str, part: Callable[..., Any], choice: Choice, context: Mapping[str, Any]
) -> Any:
    label = f"{slot} {choice}"
    parameters = _Parameters(part, label)
    written = unpack_net(label, parameters.bind(choice))
    offered = {key: value for key, value in context.items() if key != "net"}
    if "net" not in written:
        offered |= unpack_net(label, {key: value for key, value in context.items() if key == "net"})
    known = parameters.known(written, offered)
    values = {name: offered[name] for name in known if name in offered} | written
    missing = [name for name in parameters.required if name not in values]
    if missing:
        there = ", ".join(sorted(context)) or "nothing"
        raise UserError(
            f"{label} lacks {', '.join(missing)}: write {missing[0]}=... (the context has {there})"
        )
    # a part may build what it holds in another context than its own: a decoder that also receives a
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
        raise UserError(f"{label}: {_one_line(error)}") from error


class _Parameters:
    """The arguments that a part can be given by name: its constructor's, and its network's."""

    def __init__(self, part: Callable[..., Any], label: str) -> None:
        self.label = label
        signature = _signature(part)
        self.open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature)
        named = [p for p in signature if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        self.names = {parameter.name: parameter for parameter in named}
        self.positional = [p.name for p in named if p.kind is not p.KEYWORD_ONLY]
        self.required = [p.name for p in named if p.default is p.empty]
        self.net = next(_net_defaults(part), None) if self.open else None

    def bind(self, choice: Choice) -> dict[str, Any]:
        """What the choice says, by name."""
        if not self.open:
            self._refuse_unknown(choice.kwargs, self.names)
        if len(choice.args) > len(self.positional):
            expected = ", ".join(self.positional) or "none"
            raise UserError(
                f"{self.label}: too many arguments without a name (in order: {expected})"
            )
        first = dict(zip(self.positional, choice.args, strict=False))
        _refuse_twice(self.label, first, choice.kwargs)
        return first | choice.kwargs

    def known(self, written: Mapping[str, Any], offered: Mapping[str, Any]) -> list[str]:
        """The names that may be filled, with those of the network that is chosen; other written
        ones are refused.
        """
        names = list(self.names)
        if self.net is None:
            if not self.open:
                self._refuse_unknown(written, names)
            return names
        net = written.get("net", offered.get("net", self.net))
        own, is_open = _net_arguments(net)
        names += [name for name in ("net", *own) if name not in self.names]
        if not is_open:
            self._refuse_unknown(written, names)
        return names

    def _refuse_unknown(self, written: Iterable[str], known: Iterable[str]) -> None:
        for name in written:
            if name not in known:
                raise UserError(did_you_mean(f"argument of {self.label}", name, known))


def _signature(part: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(part).parameters.values())
    except (TypeError, ValueError):
        raise UserError(f"{part!r} has no signature by which it could be built") from None


def _net_defaults(part: Any) -> Iterator[Any]:
    """The default of ``net`` in the part's constructor and in its bases', to which it passes
    ``**kwargs`` on.
    """
    bases = inspect.getmro(part) if isinstance(part, type) else (part,)
    for base in bases:
        if base is part or hook(base, "slot"):
            yield from (
                parameter.default for parameter in _signature(base) if parameter.name == "net"
            )


def _net_arguments(net: Any) -> tuple[list[str], bool]:
    """The names of a network's own arguments (the shapes come from the part), and whether it takes
    any other.
    """
    network = resolve("net", net) if isinstance(net, str) else net
    if not isinstance(
        network, type
    ):  # one that is ready has its arguments; of None nothing is known
        return [], network is None
    parameters = _signature(network)
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    own = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [name for name in own if name not in ("in_shape", "out_shape")], is_open


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
        raise UserError(f"{label}: name the arguments of net={net}")
    _refuse_twice(label, net.kwargs, values)
    return {**values, **net.kwargs, "net": net.name}


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
        part = _load(name)
        slot = _slot_of(part)
        if slot is None or not isinstance(part, type):
            raise UserError(
                f"{argument}={name}(...): {name} is {_kind_of(part)}, not a class that names its "
                "slot"
            )
        return slot, _checked(slot, name, part)
    known = _slots_by_name()
    slots = known.get(name, [])
    if len(slots) > 1:
        raise UserError(
            f"{argument}={name}(...) is ambiguous: {name} belongs to the slots "
            f"{' and '.join(slots)}"
        )
    if not slots:
        raise UserError(did_you_mean(f"part for {argument}", name, known))
    return slots[0], resolve(slots[0], name)


# ---------------------------------------------------------------------------------------------------------------------
# Listing the parts


@dataclass(frozen=True)
class Part:
    """A line of ``pyro-vae list``: the name, the docstring's first line, and the arguments with
    their defaults.
    """

    name: str
    summary: str
    arguments: str


def describe(slot: str) -> list[Part]:
    """The slot's parts in their namespace's order, then the installed entry points (which are not
    imported).
    """
    parts = members(slot).items()
    own = [
        Part(name, _summary(part), "" if slot == "data" else _arguments(part))
        for name, part in parts
    ]
    return own + [Part(entry.name, f"installed: {entry.value}", "") for entry in _entries(slot)]


def _summary(part: Any) -> str:
    """The docstring's first paragraph; a class without one inherits none."""
    text = part if isinstance(part, str) else (getattr(part, "__doc__", None) or "")
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def _arguments(part: Any) -> str:
    return f"({', '.join(map(_argument, _signature(part)))})"


def _argument(parameter: inspect.Parameter) -> str:
    stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (
        parameter.kind is parameter.VAR_KEYWORD
    )
    default = "" if parameter.default is parameter.empty else f"={_write(parameter.default)}"
    return f"{stars}{parameter.name}{default}"
