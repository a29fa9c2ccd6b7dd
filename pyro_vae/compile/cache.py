"""The cache folder of torch's compiler, made writable before torch looks for it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from functools import cache

PLACE = "TORCHINDUCTOR_CACHE_DIR"


@cache
def ensure() -> None:
    """Where the folder that is named can't be used, take a temporary one, with a warning.

    torch makes the folder as it imports its compiler, which each of its optimisers does.
    """
    if (named := os.environ.get(PLACE)) is None:
        return
    try:
        os.makedirs(named, exist_ok=True)
        with tempfile.TemporaryFile(dir=named):
            return
    except OSError as error:
        folder = tempfile.mkdtemp(prefix="pyro-vae-inductor-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[PLACE] = folder
        warnings.warn(
            f"{PLACE}: {named} can't be used ({error.strerror}): torch's compiler uses a "
            "temporary folder instead",
            stacklevel=2,
        )
