"""The options of ``fit``: one dataclass that checks their ranges, and what is made of its data
arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch.utils.data import DataLoader, Dataset

from pyro_vae.data.loaders import Resident, Source, make_source
from pyro_vae.data.transforms import Dynamic, Grey, Observation, Threshold, few_levels
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.fields import constants, merged
from pyro_vae.protocols import hook
from pyro_vae.rng import check_seed
from pyro_vae.tensors import as_images
from pyro_vae.training.callbacks import EpochEnd
from pyro_vae.training.kl_warmup import Warmup, make_warmup
from pyro_vae.training.optimizers import OptimizerSpec
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.state import TrainingState


@dataclass(frozen=True)
class FitOptions:
    """What ``fit`` takes beside the programs and the data; its docstring says what each is.

    Raises:
        UserError: one is out of its range.
    """

    objective: str | ELBO
    num_epochs: int
    batch_size: int
    learning_rate: float
    optimizer: OptimizerSpec
    schedule: str | Schedule
    num_steps: int | None
    kl_weight: float
    kl_warmup: float | str | Warmup
    grad_clip: float | None
    callbacks: Iterable[Callable[[EpochEnd], bool | None]]
    freeze: str | None
    binarize: str | Observation | None
    x_valid: Any
    seed: int
    device: str | torch.device
    compile: str
    progress: bool
    on_divergence: str
    resume: TrainingState | str | Path | None

    @staticmethod
    def of(arguments: Mapping[str, Any]) -> FitOptions:
        """The options among a call's arguments."""
        return FitOptions(**{each.name: arguments[each.name] for each in fields(FitOptions)})

    def __post_init__(self) -> None:
        length = "num_epochs" if self.num_steps is None else "num_steps"
        self._positive(length, int, f"a whole number of {length.removeprefix('num_')}, 1 or more")
        self._positive("batch_size", int, "a whole number of images, 1 or more")
        self._positive("learning_rate", (int, float), "a positive number, such as 1e-3")
        if self.grad_clip is not None:
            self._positive("grad_clip", (int, float), "a positive norm, or None")
        if (
            isinstance(self.kl_weight, bool)
            or not isinstance(self.kl_weight, Real)
            or not 0 <= self.kl_weight < float("inf")
        ):
            raise UserError(f"kl_weight={self.kl_weight!r}: expected a number, 0 or more")
        make_warmup(self.kl_warmup)
        if self.freeze not in (None, "model", "guide"):
            raise UserError(did_you_mean("part to freeze", str(self.freeze), ["model", "guide"]))
        if self.on_divergence not in ("stop", "skip"):
            raise UserError(
                did_you_mean("way with a divergence", str(self.on_divergence), ["stop", "skip"])
            )
        check_seed(self.seed)

    def _positive(self, name: str, kind: Any, what: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < float("inf"):
            raise UserError(f"{name}={value!r}: expected {what}")


def observations(
    binarize: str | Observation | None, x: Any
) -> tuple[Observation | None, Observation | None]:
    """What is applied at each visit, and what once before the training."""
    if binarize is None or isinstance(binarize, Observation):
        return binarize, None
    levels = None
    if str(getattr(x, "dtype", "")).endswith("uint8"):
        largest = int(x.max()) if len(x) else 0
        levels = 2 if largest <= 1 else 256
        if few_levels(largest, levels):
            warnings.warn(
                f"x_train's whole numbers end at {largest} and are taken for grey levels 0 to 255: "
                f"where they are levels, give binarize=Dynamic({largest + 1}), an Observation of "
                "pyro_vae.data.transforms; counts are for a likelihood of counts, such as Poisson, "
                "without binarize",
                stacklevel=4,
            )
    if binarize == "dynamic":
        return Dynamic(levels), None
    choices: dict[str, Observation] = {
        "static": Dynamic(levels),
        "threshold": Threshold(levels),
        "none": Grey(levels),
    }
    if binarize not in choices:
        raise UserError(did_you_mean("binarization", str(binarize), ["dynamic", *choices]))
    return None, choices[binarize]


def draw_once(x: Any, observation: Observation | None, seed: int, part: str) -> Any:
    """A whole set observed before the training, from a stream of its own; as it is where there is
    nothing to draw.
    """
    if observation is None:
        return x
    if isinstance(x, Dataset | DataLoader):
        raise UserError(
            f"the {part} set is to be binarized once, and a Dataset can't be: give a tensor, or "
            "binarized items"
        )
    return observation.fixed(
        as_images(x, {"train": "x_train", "validation": "x_valid"}[part]), seed, part
    )


def _is_float(x: Any) -> bool:
    return torch.as_tensor(x).is_floating_point() if hasattr(x, "__array__") else False


def refuse_unseen(guide: Any) -> None:
    """A ``UserError`` for a guide that has no q(z | x) of images that it was not fitted on (its
    ``amortized`` is False).
    """
    if not hook(guide, "amortized"):
        raise UserError(
            f"{type(guide).__name__} has a q(z) for each training image and none for others, so "
            "there is no ELBO of x_valid: leave x_valid out, and call refine(model, guide, x) on "
            "images that it was not fitted on"
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
    fields, named = merged(fields), {**constants(fields), **merged(named)}
    resident = isinstance(train, Resident) and not isinstance(x, Dataset | DataLoader)
    if x is None or (resident and named.keys() != fields.keys()):
        raise UserError(
            f"x_valid has {', '.join(sorted(named)) or 'no fields'} beside x, the training set "
            f"has {', '.join(sorted(fields)) or 'none'}: give x_valid as a dict with 'x' and the "
            "same fields"
        )
    if (
        observation is not None
        and isinstance(train, Resident)
        and not train.x.is_floating_point()
        and _is_float(x)
    ):
        raise UserError(
            "x_valid is floating point where x_train holds integer levels: give it as stored, for "
            "fit observes it itself, once"
        )
    return make_source(
        draw_once(x, observation, seed, "validation"),
        named,
        max(train.batch_size, 500),
        device,
        "x_valid",
    )


def check_callbacks(callbacks: Any) -> tuple[Callable[[EpochEnd], bool | None], ...]:
    """All of them, from any iterable; they are called again after each epoch."""
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in listed:
        if not callable(callback):
            raise UserError(
                f"callbacks holds a {type(callback).__name__}: expected functions of an EpochEnd"
            )
    return listed
