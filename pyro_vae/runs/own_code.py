"""The user's own code among the options of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pyro_vae.choices import specs, user_code
from pyro_vae.errors import UserError
from pyro_vae.runs.options import Train

CHOICES = (
    *("data", "model", "prior", "likelihood", "guide", "objective", "net"),
    *("optimizer", "schedule", "kl_warmup"),
)
"""The options that name a part."""


def own_code(options: Train) -> dict[str, str]:
    """Each ``file.py`` and ``module`` that the options name, but for installed packages, with its
    SHA-256.
    """
    found: dict[str, str] = {}
    for name in CHOICES:
        value = getattr(options, name)
        if not isinstance(value, str) or ":" not in value:
            continue
        with suppress(UserError, OSError):  # no choice, but a path; or gone in the meantime
            for reference in _references(specs.parse(value)):
                place = reference.rpartition(":")[0]
                if digest := user_code.digest_of(place):
                    found[place] = digest
    return found


def _references(choice: specs.Choice) -> Iterator[str]:
    """The names with a colon in a choice and in its arguments, bare ones too."""
    if ":" in choice.name:
        yield choice.name
    for value in (*choice.args, *choice.kwargs.values()):
        yield from _within(value)


def _within(value: Any) -> Iterator[str]:
    if isinstance(value, specs.Choice):
        yield from _references(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _within(each)
    elif isinstance(value, str) and ":" in value:
        yield value
