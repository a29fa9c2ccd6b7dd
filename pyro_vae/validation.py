"""Whole numbers among the settings."""

from typing import Any

from pyro_vae.errors import UserError


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


def check_count(name: str, value: Any) -> int:
    """The argument ``name``, a whole number, 1 or more; a ``UserError`` for something else."""
    return check_whole(name + "={!r}", value)
