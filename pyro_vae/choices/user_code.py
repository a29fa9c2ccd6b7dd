"""Import of the user's own modules and files.

The code of a stored run (`of_run`) is run where this user has trained with it, or trusts it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, all_suffixes
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_vae.choices import trust
from pyro_vae.errors import UserError, did_you_mean, one_line


@dataclass(frozen=True)
class _Stored:
    """A run whose code is wanted."""

    folder: Path
    trusted: bool
    code: Mapping[str, str] = field(default_factory=dict)  # what the training ran: place, SHA-256


_stored: ContextVar[_Stored | None] = ContextVar("_stored", default=None)


@contextmanager
def of_run(folder: Path, trusted: bool, code: Mapping[str, str]) -> Iterator[None]:
    """Inside, files are looked for next to the run too, and code is run that is known, or trusted.

    Args:
        folder: the run's.
        code: the SHA-256 of each place that the training ran.
    """
    token = _stored.set(_Stored(folder.resolve(), trusted, code))
    try:
        yield
    finally:
        _stored.reset(token)


def load_named(reference: str) -> Any:
    """The object that ``module:Name`` or ``file.py:Name`` names."""
    place, _, name = reference.rpartition(":")
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(did_you_mean(f"name in {place}", name, public))
    return getattr(module, name)


def digest_of(place: str) -> str | None:
    """The SHA-256 of the user's code at ``file.py`` or ``module``; None for installed packages."""
    paths = [_located(place)] if place.endswith(".py") else _own_files(place)
    return trust.digest_of(path.read_bytes() for path in paths) if paths else None


def _load_module(place: str) -> Any:
    if place.endswith(".__main__"):
        raise UserError(
            f"{place} is a program: to import it would run it. Name a module that only "
            "defines parts"
        )
    if place in sys.modules:
        return sys.modules[place]
    own = _own_files(place)
    if own and _stored.get() is not None:
        _admit(place, own, [path.read_bytes() for path in own])
    with _from_source() if own else nullcontext():
        return guarded(lambda: importlib.import_module(place), place)


def _own_files(place: str) -> list[Path]:
    """The files that importing the module runs first, where they are not an installed package's."""
    top, *inner = place.split(".")
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None or top == "pyro_vae":
        return []
    here = [Path(each).resolve() for each in spec.submodule_search_locations or ()]
    begins = [Path(spec.origin).resolve()] if spec.origin and os.path.isfile(spec.origin) else []
    if any(path.is_relative_to(each) for path in (*begins, *here) for each in _installed()):
        return []
    found, folders = begins, here
    for word in inner:
        names = [f"{word}{suffix}" for suffix in all_suffixes()]
        found += [each / name for each in folders for name in names if (each / name).is_file()]
        folders = [each / word for each in folders if (each / word).is_dir()]
        found += [each / "__init__.py" for each in folders if (each / "__init__.py").is_file()]
    return found


def _installed() -> list[Path]:
    """Where packages are installed, and the standard library."""
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    own = [Path(sysconfig.get_paths()[name]).resolve() for name in names]
    also = [
        Path(each).resolve()
        for each in sys.path
        if each.endswith(("site-packages", "dist-packages"))
    ]
    return own + also


@contextmanager
def _from_source() -> Iterator[None]:
    """What is imported inside is compiled from its source: a ``.pyc`` next to it may be of other
    code.
    """
    before = sys.pycache_prefix, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory() as nothing:
        sys.pycache_prefix, sys.dont_write_bytecode = nothing, True
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = before


def _load_file(place: str) -> Any:
    """The file as a module, once per process, under a name of its own (so that its classes can be
    pickled).
    """
    path = _located(place)
    name = f"pyro_vae_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    try:
        source = path.read_bytes()  # once: what is run is what is admitted
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    _admit(place, [path], [source])
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)
    module.__file__, module.__spec__ = str(path), ModuleSpec(name, None, origin=str(path))
    try:  # compiled from its source: a ``.pyc`` next to it may be of other code
        guarded(
            lambda: exec(compile(source, str(path), "exec", dont_inherit=True), vars(module)), place
        )
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _located(place: str) -> Path:
    """The file, seen from here; for a run's also from its folder and those above it, the one first
    that the training ran.
    """
    given, stored = Path(place).expanduser(), _stored.get()
    places = [given]
    if stored is not None and not given.is_absolute():
        places += [above / given for above in (stored.folder, *stored.folder.parents)]
    found = [path.resolve() for path in places if path.is_file()]
    if not found:
        raise UserError(f"no file {place!r} (looked for {str(given.resolve())!r})")
    if stored is not None and (expected := stored.code.get(place)) is not None:
        for path in found:
            if trust.digest_of([path.read_bytes()]) == expected:
                return path
    return found[0]


def _admit(place: str, paths: list[Path], contents: list[bytes]) -> None:
    """A ``UserError`` for a run's code that this user has not trained with and does not trust."""
    stored = _stored.get()
    if stored is None:
        return
    digest = trust.digest_of(contents)
    if trust.is_known(digest):
        return
    whose = (
        "the run's folder has a copy of it"
        if paths[-1].is_relative_to(stored.folder)
        else "it is not the file that the run was trained with"
    )
    name = f"{paths[-1]} (SHA-256 {digest[:12]}…; {whose})"
    if not stored.trusted:
        raise UserError(
            f"{place}: the run uses the code of {name}, with which you have not trained on this "
            "machine. Read it, then give --trust (Python: trust=True)"
        )
    warnings.warn(f"running the code of {name}; it is trusted from now on", stacklevel=2)
    trust.note(digest, str(paths[-1]))


def guarded(load: Callable[[], Any], place: str) -> Any:
    """What ``load`` gives; an error of the user's code in one line, with its line number."""
    try:
        return load()
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            how = "install it, or write path/to/file.py:Name"
            raise UserError(f"no module {missing!r}: {how}") from None
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = f" ({Path(frame.filename).name}, line {frame.lineno})"
        where = "" if isinstance(error, SyntaxError) else line
        raise UserError(
            f"importing {place} failed: {type(error).__name__}: {one_line(error)}{where}"
        ) from error
