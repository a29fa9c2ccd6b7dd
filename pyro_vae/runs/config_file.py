"""Configuration files: the stored options of a training as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.runs.options import OF_THE_CALL, Train
from pyro_vae.training.settings import (
    expected,
    is_a,
    kinds_of,
)


def stored_names() -> list[str]:
    """The options of a training that its configuration keeps."""
    return [each.name for each in fields(Train) if each.name not in OF_THE_CALL]


def to_toml(options: Train) -> bytes:
    """The stored options as a TOML file that `read_config` reads; an option that is not given is
    left out.
    """
    import tomli_w

    return tomli_w.dumps(plain(options)).encode()


def plain(options: Train) -> dict[str, Any]:
    """The stored options that are given, as plain values."""
    values = {name: getattr(options, name) for name in stored_names()}
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in values.items()
        if value is not None
    }


def read_config(path: Path) -> dict[str, Any]:
    """The options in a TOML file, by their names (``batch_size`` or ``batch-size``), each of the
    right type.

    Raises:
        UserError: no such file, no TOML, an unknown option, or a value of another type.
    """
    return typed(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file; a ``UserError`` where it can't be read."""
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"{path}: cannot be read ({why}); expected a TOML file of options"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{path}: not valid TOML ({error}); write lines such as latent_dim = 20"
        ) from error


def typed(held: Mapping[str, Any], of: str) -> dict[str, Any]:
    """These options of a training by their names, each of the right type; ``of`` is where they are
    from, for messages.
    """
    values = {}
    for key, value in held.items():
        name = key.replace("-", "_")
        if name not in stored_names():
            raise UserError(f"{of}: {did_you_mean('option', key, stored_names())}")
        kinds = kinds_of(Train, name)
        value = Path(value) if Path in kinds and isinstance(value, str) else value
        limits = next(each.metadata for each in fields(Train) if each.name == name)
        if not any(is_a(value, kind) for kind in kinds):
            raise UserError(f"{of}: {key} = {value!r}: expected {expected(kinds, limits)}")
        values[name] = float(value) if isinstance(value, int) and float in kinds else value
    return values


def train_from(path: Path) -> Train:
    """A training's options from its config.toml, checked."""
    options = Train(**read_config(path))
    options.check()
    return options
