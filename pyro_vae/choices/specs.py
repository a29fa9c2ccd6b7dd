"""The grammar of a choice: ``IAF(depth=4)``, ``Gaussian(scale=learned)``, ``my_lab.guides:Mine``,
``file.py:Mine``.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.errors import UserError

MAX_LENGTH, MAX_DEPTH = 2000, 20
"""More than any choice needs, and less than Python's parser breaks on."""


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


# a colon is no part of the grammar but in strings and references, so one pass over the text
# separates them
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
                f"{text!r}: expected a module or a .py file before the colon", token.start()
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


def within(value: Any) -> Iterator[Any]:
    """A choice, or a value in one, and all that is written in it."""
    yield value
    if isinstance(value, Choice):
        value = (*value.args, *value.kwargs.values())
    for each in value if isinstance(value, list | tuple) else ():
        yield from within(each)


def _is_reference(text: str) -> bool:
    """Whether ``text`` is ``file.py:Name`` or ``module.sub:Name``."""
    place, _, _ = text.rpartition(":")
    words = place.split(".")
    return place.endswith(".py") or all(
        word.isidentifier() and not keyword.iskeyword(word) for word in words
    )


def _write_call(choice: Choice) -> str:
    named = (f"{name}={write(value)}" for name, value in choice.kwargs.items())
    return f"{choice.name}({', '.join([*map(write, choice.args), *named])})"


def write(value: Any) -> str:
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
            return f"[{', '.join(map(write, value))}]"
        case tuple():
            return f"({', '.join(map(write, value))}{',' * (len(value) == 1)})"
    return str(getattr(value, "__name__", None) or repr(value))
