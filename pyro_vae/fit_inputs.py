"""What ``fit`` receives, checked and turned into what its loop needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pyro_vae.batches import Resident, Source, as_images, make_source
from pyro_vae.callbacks import EpochEnd
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.observation import Dynamic, Grey, Observation, Threshold
from pyro_vae.warmups import Warmup, make_warmup


def observations(binarize: str | Observation | None, x: Any) -> tuple[Observation | None, Observation | None]:
    """What is applied at each visit, and what once before the training."""
    if binarize is None or isinstance(binarize, Observation):
        return binarize, None
    levels = None
    if str(getattr(x, "dtype", "")).endswith("uint8"):
        levels = 2 if len(x) and int(x.max()) <= 1 else 256
    if binarize == "dynamic":
        return Dynamic(levels), None
    choices: dict[str, Observation] = {"static": Dynamic(levels), "threshold": Threshold(levels), "none": Grey(levels)}
    if binarize not in choices:
        raise UserError(did_you_mean("binarization", str(binarize), ["dynamic", *choices]))
    return None, choices[binarize]


def draw_once(x: Any, observation: Observation | None, seed: int, part: str) -> Any:
    """A whole set observed before the training, from a stream of its own; as it is where there is nothing to draw."""
    if observation is None:
        return x
    if isinstance(x, Dataset | DataLoader):
        raise UserError(
            f"the {part} set is to be binarized once, and a Dataset can't be: give a tensor, or binarized items"
        )
    return observation.fixed(as_images(x, {"train": "x_train", "validation": "x_valid"}[part]), seed, part)


def _is_float(x: Any) -> bool:
    return torch.as_tensor(x).is_floating_point() if hasattr(x, "__array__") else False


def refuse_unseen(guide: Any) -> None:
    """A ``UserError`` for a guide that has no q(z | x) of images that it was not fitted on (its ``amortized`` is False)."""
    if not getattr(guide, "amortized", True):
        raise UserError(
            f"{type(guide).__name__} has a q(z) for each training image and none for others, so there is no ELBO of x_valid: leave "
            "x_valid out, and call refine(model, guide, x) on images that it was not fitted on"
        )


def validation_source(
    x_valid: Any,
    observation: Observation | None,
    seed: int,
    fields: Mapping[str, Any],
    train: Source,
    device: torch.device,
) -> Source | None:
    """The validation set with its fields, observed once."""
    if x_valid is None:
        return None
    named = dict(x_valid) if isinstance(x_valid, Mapping) else {"x": x_valid}
    x = named.pop("x", None)
    resident = isinstance(train, Resident) and not isinstance(x, Dataset | DataLoader)
    if x is None or (resident and named.keys() != fields.keys()):
        raise UserError(
            f"x_valid has {', '.join(sorted(named)) or 'no fields'} beside x, the training set "
            f"has {', '.join(sorted(fields)) or 'none'}: give x_valid as a dict with 'x' and the same fields"
        )
    if observation is not None and isinstance(train, Resident) and not train.x.is_floating_point() and _is_float(x):
        raise UserError(
            "x_valid is floating point where x_train holds integer levels: give it as stored, for fit observes it itself, once"
        )
    return make_source(
        draw_once(x, observation, seed, "validation"), named, max(train.batch_size, 500), device, "x_valid"
    )


def check_options(
    num_epochs: int,
    num_steps: int | None,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
    kl_warmup: float | str | Warmup,
    grad_clip: float | None,
    freeze: str | None,
    on_divergence: str,
) -> None:
    """A ``UserError`` for a number out of its range."""

    def positive(name: str, value: Any, kind: Any, what: str) -> None:
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < float("inf"):
            raise UserError(f"{name}={value!r}: expected {what}")

    positive("batch_size", batch_size, int, "a whole number of images, 1 or more")
    positive("learning_rate", learning_rate, (int, float), "a positive number, such as 1e-3")
    if num_steps is not None:
        positive("num_steps", num_steps, int, "a whole number of steps, 1 or more")
    else:
        positive("num_epochs", num_epochs, int, "a whole number of epochs, 1 or more")
    if grad_clip is not None:
        positive("grad_clip", grad_clip, (int, float), "a positive norm, or None")
    if isinstance(kl_weight, bool) or not isinstance(kl_weight, Real) or not 0 <= kl_weight < float("inf"):
        raise UserError(f"kl_weight={kl_weight!r}: expected a number, 0 or more")
    make_warmup(kl_warmup)
    if freeze not in (None, "model", "guide"):
        raise UserError(did_you_mean("part to freeze", str(freeze), ["model", "guide"]))
    if on_divergence not in ("stop", "skip"):
        raise UserError(did_you_mean("way with a divergence", str(on_divergence), ["stop", "skip"]))


def check_callbacks(callbacks: Any) -> tuple[Callable[[EpochEnd], bool | None], ...]:
    """All of them, from any iterable; they are called again after each epoch."""
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in listed:
        if not callable(callback):
            raise UserError(f"callbacks holds a {type(callback).__name__}: expected functions of an EpochEnd")
    return listed
