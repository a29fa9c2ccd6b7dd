"""Where, when and by what a training or an evaluation was made."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import pyro_vae
from pyro_vae.choices import specs, user_code
from pyro_vae.errors import UserError
from pyro_vae.runs.options import Train

SECONDS = 5
"""After which git is not waited for."""


def provenance(seconds: float) -> dict[str, Any]:
    """``time`` (ISO 8601, UTC), ``seconds``, ``version`` of this package; ``commit`` that is
    checked out in the current folder, or None.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "version": pyro_vae.__version__,
        "commit": commit(Path.cwd()),
    }


@cache
def commit(folder: Path) -> str | None:
    """The commit that is checked out there. Nothing but its name is asked for: a repository's own
    configuration can make `git status` run programs.
    """
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip()
    return None


PACKAGES = (
    "pyro-vae",
    "torch",
    "torchvision",
    "pyro-ppl",
    "numpy",
    "arviz",
    "matplotlib",
    "scikit-learn",
)


def environment(device: torch.device, command: Iterable[str]) -> dict[str, Any]:
    """Versions, machine and command; without the names of folders, users or hosts."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "command": [_without_folders(word) for word in command],
    }


def _without_folders(word: str) -> str:
    """A word of the command line with absolute folders left out: ``--data=/home/me/x.npz`` is
    ``--data=x.npz``.
    """
    return re.sub(
        r"(?:(?<=^)|(?<=[\s'\"=(,]))(?:~[^/\s]*|[A-Za-z]:)?[/\\](?:[^/\\'\"=(),:]*[/\\])*", "", word
    )


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
