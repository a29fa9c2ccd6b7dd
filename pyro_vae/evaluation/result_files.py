"""An estimate of log p(x) as a file: its per-image figures and its protocol, in a .npz without
pickle.
"""

from __future__ import annotations

import json
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation.ais import AnnealedMarginal
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.files import write_atomically

KINDS: dict[str, type[LogMarginal]] = {
    "LogMarginal": LogMarginal,
    "AnnealedMarginal": AnnealedMarginal,
}


def save_estimate(path: Path, ll: LogMarginal, of: str) -> None:
    """Write ``ll``; ``of`` names what it was estimated with, such as a checkpoint's SHA-256."""
    held = {each.name: getattr(ll, each.name) for each in fields(ll)}
    arrays: dict[str, Any] = {
        name: value.cpu().numpy() for name, value in held.items() if isinstance(value, Tensor)
    }
    words = {name: value for name, value in held.items() if name not in arrays}
    words |= {"class": type(ll).__name__, "of": of}
    content = BytesIO()
    np.savez_compressed(content, words=np.array(json.dumps(words, default=str)), **arrays)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())


def load_estimate(path: Path, of: str) -> LogMarginal | None:
    """What `save_estimate` wrote, or None where there is no file or it is ``of`` something else.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as held:
            arrays: dict[str, Any] = {name: held[name] for name in held.files}
        words: dict[str, Any] = json.loads(str(arrays.pop("words")))
        kind = KINDS[words.pop("class")]
        if words.pop("of") != of:
            return None
        words["curve"] = {int(k): value for k, value in words["curve"].items()}
        words["notes"] = tuple(words["notes"])
        tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return kind(**tensors, **words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path}: damaged, or not an estimate of pyro_vae; move it away, and evaluate again"
        ) from error
