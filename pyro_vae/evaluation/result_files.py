"""Result files: an estimate's figures and protocol in a .npz file without pickle."""

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
from pyro_vae.evaluation.bdmc import BDMC
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.refine import Refinement
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.files import write_atomically

KINDS: dict[str, type[Estimate]] = {
    kind.__name__: kind for kind in (LogMarginal, AnnealedMarginal, BDMC, Refinement)
}
"""By the names that files have."""


def save_estimate(path: Path, ll: Estimate, of: str) -> None:
    """Write ``ll``; ``of`` names what it was estimated with, such as a checkpoint's SHA-256."""
    arrays, words = _parts(ll)
    content = BytesIO()
    said = np.array(json.dumps({**words, "of": of}, default=str))
    np.savez_compressed(content, words=said, **arrays)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())


def _parts(ll: Estimate) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors as arrays, those of an estimate in it under ``name.``, and what JSON has; a guide
    is in neither.
    """
    arrays = dict[str, Any]()
    words: dict[str, Any] = {"class": type(ll).__name__}
    for name, value in ((each.name, getattr(ll, each.name)) for each in fields(ll)):
        if isinstance(value, Tensor):
            arrays[name] = value.cpu().numpy()
        elif isinstance(value, Estimate):
            inner, words[name] = _parts(value)
            arrays |= {f"{name}.{key}": array for key, array in inner.items()}
        elif not isinstance(value, torch.nn.Module):
            words[name] = value
    return arrays, words


def load_estimate(path: Path, of: str) -> Any:
    """The estimate that `save_estimate` wrote, or None where there is no file or it is ``of``
    something else.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as held:
            arrays: dict[str, Any] = {name: held[name] for name in held.files}
        words: dict[str, Any] = json.loads(str(arrays.pop("words")))
        return _whole(arrays, words) if words.pop("of") == of else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path}: damaged, or not an estimate of pyro_vae. Move it away, and evaluate again"
        ) from error


def _whole(arrays: dict[str, Any], words: dict[str, Any]) -> Estimate:
    kind = KINDS[words.pop("class")]
    tensors: dict[str, Any] = {
        n: torch.from_numpy(array) for n, array in arrays.items() if "." not in n
    }
    for name in {n.partition(".")[0] for n in arrays if "." in n}:
        own = {n.partition(".")[2]: a for n, a in arrays.items() if n.startswith(f"{name}.")}
        words[name] = _whole(own, words[name])
    if "curve" in words:
        words["curve"] = {int(k): value for k, value in words["curve"].items()}
    return kind(**tensors, **{**words, "notes": tuple(words["notes"])})
