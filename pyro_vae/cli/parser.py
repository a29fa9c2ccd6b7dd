"""The argument parser, made from the dataclasses of options: a flag for each field, docstrings as
help.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from pyro_vae.errors import UserError, nearest
from pyro_vae.training.settings import flag, kinds_in, kinds_of

MOST_COLUMNS, LEFT = 100, 26
"""Of the help in all, and up to what an option is."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are a ``UserError``."""

    def __init__(self, **settings: Any) -> None:
        columns = min(shutil.get_terminal_size((80, 0)).columns, MOST_COLUMNS)
        form = partial(argparse.RawDescriptionHelpFormatter, max_help_position=LEFT, width=columns)
        super().__init__(allow_abbrev=False, formatter_class=form, **settings)

    def error(self, message: str) -> NoReturn:
        """One line, with where to look."""
        raise UserError(f"{message} (see {self.prog} --help)")


def command_parser(kind: type[Any]) -> Parser:
    """The parser of one command."""
    examples = "\n".join(["examples:", *(f"  {each}" for each in kind.examples)])
    parser = Parser(
        prog=f"pyro-vae {kind.command}",
        usage="%(prog)s" + "".join(map(_place, fields(kind))) + " [options]",
        description=inspect.cleandoc(kind.__doc__ or ""),
        epilog=examples if kind.examples else None,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    documented, listed = _docstrings(kind), {each.name: each for each in fields(kind)}
    grouped = {head: names.split() for head, names in kind.groups.items()}
    rest = [name for name in listed if name not in {n for each in grouped.values() for n in each}]
    rest.sort(key=lambda name: name not in kind.__annotations__)  # its own first
    for head, names in {**grouped, **({"options": rest} if rest else {})}.items():
        group = parser.add_argument_group(head)
        for name in names:
            each = listed[name]
            words = " ".join(documented.get(name, each.metadata.get("help", "")).split())
            default = "" if "y default" in words else _default(each)
            shown = (words + default).replace("%", "%%")
            group.add_argument(*_names(each), help=shown, **_settings(each, kind))
    group.add_argument("-h", "--help", action="help", help="Show this, and exit.")
    return parser


def read_options(kind: type[Any], words: Sequence[str], known: Mapping[str, Any]) -> Any:
    """The options of one command out of its ``words``, ``known`` being the defaults.

    Words that are not of the option's type are left as they are, for `check_fields` to refuse.

    Raises:
        UserError: an unknown option, or a missing value, or too many.
        SystemExit: after --help.
    """
    parser = command_parser(kind)
    found, rest = parser.parse_known_args([_with_hyphens(word) for word in words])
    if rest:
        text = rest[0].partition("=")[0]
        flags = [name for each in fields(kind) for name in _names(each) if name[:2] == "--"]
        near = [f"--{name}" for name in nearest(text.lstrip("-"), [each[2:] for each in flags])]
        meant = f"; did you mean {' or '.join(near)}?" if near and text[:1] == "-" else ""
        parser.error(f"unknown {'option' if text[:1] == '-' else 'argument'} {text}{meant}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(found).items()}
    return kind(**{**known, **values})


def _with_hyphens(word: str) -> str:
    """``--batch_size=3`` as ``--batch-size=3``."""
    name, *rest = word.split("=", 1)
    return "=".join([name.replace("_", "-"), *rest]) if word.startswith("--") else word


def _place(each: Field[Any]) -> str:
    several = isinstance(each.default, tuple)
    name = each.name.upper() if each.default is MISSING else f"[{each.name.upper()}]"
    return f" {name}{' …' * several}" if each.metadata.get("place") else ""


def _names(each: Field[Any]) -> tuple[str, ...]:
    if each.metadata.get("place"):
        return (each.name,)
    return (*each.metadata.get("short", ()), flag(each.name))


def _settings(each: Field[Any], kind: Any) -> dict[str, Any]:
    """How argparse is to read the field."""
    kinds = kinds_of(kind, each.name)
    if bool in kinds:
        switch = argparse.BooleanOptionalAction if each.default is True else "store_true"
        return {"action": switch}
    several = isinstance(each.default, tuple)
    inner = kinds_in(get_args(kinds[0])[0]) if several else kinds
    first = next(each for each in inner if each is not NoneType)
    shown, convert = each.name.rpartition("_")[2].upper(), partial(_converted, inner)
    if not each.metadata.get("place"):
        shown = {int: "N", float: "X", Path: "PATH"}.get(first, shown)
        shown = "|".join(get_args(first)) if get_origin(first) is Literal else shown
        return {"type": convert, "metavar": shown, "nargs": "+" if several else None}
    read = {"type": convert, "metavar": shown}
    if each.default is MISSING:
        return read
    return {**read, "nargs": "*" if several else "?", "default": each.default}


def _converted(kinds: Sequence[Any], word: str) -> Any:
    for kind in kinds:
        if kind in (int, float, Path):
            try:
                return kind(word)
            except ValueError:
                continue
    return word


def _default(each: Field[Any]) -> str:
    """The default, where the docstring does not say what happens without the option."""
    plain = isinstance(each.default, str | int | float) and not isinstance(each.default, bool)
    return f" Default: {each.default}." if plain else ""


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """The string below each field of the class and of those that it extends."""
    found: dict[str, str] = {}
    for base in kind.__mro__[-2::-1]:
        try:
            (node,) = ast.parse(inspect.getsource(base)).body
        except (OSError, TypeError, SyntaxError):  # made at run time
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        for each, after in pairwise(body):
            if isinstance(each, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(each.target)] = ast.literal_eval(after.value)
    return found
