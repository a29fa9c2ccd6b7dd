"""The user's own modules and files, imported by the name of what is wanted from them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_vae.errors import UserError, did_you_mean, one_line


def load_named(reference: str) -> Any:
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
        guarded(lambda: execute(module), place)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def guarded(load: Callable[[], Any], place: str) -> Any:
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
    return UserError(f"importing {place} failed: {type(error).__name__}: {one_line(error)}{where}")
