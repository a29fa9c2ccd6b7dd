"""The user's own code among the options of a training."""

from __future__ import annotations

from contextlib import suppress

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
            for each in specs.within(specs.parse(value)):
                name = each.name if isinstance(each, specs.Choice) else each
                place = name.rpartition(":")[0] if isinstance(name, str) else ""
                if place and (digest := user_code.digest_of(place)):
                    found[place] = digest
    return found
