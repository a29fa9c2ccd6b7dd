"""Validation of arguments that are numbers or words."""

from collections.abc import Iterable
from math import inf
from typing import Any

from pyro_vae.errors import UserError, did_you_mean


def check_whole(setting: str, value: Any, of: str = "", least: int = 1) -> int:
    """``value``, a whole number of ``of``, ``least`` or more; ``setting`` is how it is written:
    ``"IAF(depth={!r})"``.

    Raises:
        UserError: it is something else (True is 1 to Python, and no number here).
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"{setting.format(value)}: expected a whole number{of and f' of {of}'}, {least} or more"
        )
    return value


def check_number(
    setting: str, value: Any, of: str, low: float = 0.0, high: float = inf, *, ends: str = "[)"
) -> float:
    """``value``, a number from ``low`` to ``high``, each of which it may be by ``ends``.

    Args:
        setting: how it is written, as of `check_whole`.
        of: what is expected, in words.
        ends: such as ``"(]"``: the brackets of the interval.

    Raises:
        UserError: it is something else, as are True, NaN, and what is no ``int`` or ``float``.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and (low <= value if ends[0] == "[" else low < value)
    if not (inside and (value <= high if ends[1] == "]" else value < high)):
        raise UserError(f"{setting.format(value)}: expected {of}")
    return float(value)


def check_choice(what: str, value: Any, choices: Iterable[str]) -> str:
    """``value``, one of the choices; else a ``UserError`` that names the nearest."""
    if not (isinstance(value, str) and value in choices):
        raise UserError(did_you_mean(what, str(value), choices))
    return value


def check_count(name: str, value: Any) -> int:
    """The argument ``name``, a whole number, 1 or more; a ``UserError`` for something else."""
    return check_whole(name + "={!r}", value)
