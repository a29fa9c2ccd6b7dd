"""The options of ``fit``: ranges are checked, data and validation data are prepared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_vae import distributed
from pyro_vae.data.batches import Resident, Source
from pyro_vae.data.loaders import make_source
from pyro_vae.data.observations import Dynamic, Grey, Observation, Threshold
from pyro_vae.data.transforms import few_levels
from pyro_vae.errors import UserError
from pyro_vae.fields import constants, merged
from pyro_vae.pair import observed_support
from pyro_vae.pair.nodes import taken
from pyro_vae.pair.runtime import Pair
from pyro_vae.protocols import hook
from pyro_vae.tensors import as_images
from pyro_vae.training.callbacks import EpochEnd
from pyro_vae.training.init import Init
from pyro_vae.training.kl_warmup import make_warmup
from pyro_vae.training.settings import Settings, by_site, check_fields, option
from pyro_vae.training.state import TrainingState
from pyro_vae.validation import check_choice


@dataclass(frozen=True, kw_only=True)
class FitOptions(Settings):
    """All that ``fit`` takes besides the programs and the data; its docstring says what each is.

    Raises:
        UserError: one is out of its range.
    """

    num_epochs: int = option(10, least=1)
    num_steps: int | None = option(None, least=1)
    batch_size: int | None = option(128, least=1)  # type: ignore[assignment]  # None: all rows
    callbacks: Iterable[Callable[[EpochEnd], bool | None]] = ()
    binarize: str | Observation | None = None
    x_valid: Any = None
    device: str | torch.device = "auto"
    progress: bool = True
    init: Init | None = None
    resume: TrainingState | str | Path | None = None

    @staticmethod
    def of(arguments: Mapping[str, Any]) -> FitOptions:
        """The options among a call's arguments."""
        return FitOptions(**{each.name: arguments[each.name] for each in fields(FitOptions)})

    def __post_init__(self) -> None:
        check_fields(self, flags=False)
        make_warmup(self.kl_warmup)
        by_site(self.kl_weight)


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
                f"the largest whole number of x_train is {largest}, and the values are read as "
                "grey levels 0 to 255. If they are other levels, give "
                f"binarize=Dynamic({largest + 1}) (pyro_vae.data.transforms). If they are "
                "counts, use a likelihood of counts, such as Poisson, without binarize",
                stacklevel=4,
            )
    if binarize == "dynamic":
        return Dynamic(levels), None
    choices: dict[str, Observation] = {
        "static": Dynamic(levels),
        "threshold": Threshold(levels),
        "none": Grey(levels),
    }
    check_choice("binarization", binarize, ["dynamic", *choices])
    return None, choices[binarize]


def draw_once(x: Any, observation: Observation | None, seed: int, part: str) -> Any:
    """A whole set observed before the training, from a stream of its own; as it is where there is
    nothing to draw.
    """
    if observation is None:
        return x
    if isinstance(x, Dataset | DataLoader):
        raise UserError(
            f"the {part} set can't be binarized once, because it is a Dataset: give a tensor, "
            "or binarized items"
        )
    return observation.fixed(
        as_images(x, {"train": "x_train", "validation": "x_valid"}[part], missing=True), seed, part
    )


def refuse_unseen(guide: Any) -> None:
    """A ``UserError`` for a guide that has no q(z | x) of images that it was not fitted on (its
    ``amortized`` is False).
    """
    if not hook(guide, "amortized"):
        raise UserError(
            f"{type(guide).__name__} has a q(z) for the training images only, so there is no "
            "ELBO of x_valid: leave x_valid out. For other images call refine(model, guide, x)"
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
            f"x_valid has {', '.join(sorted(named)) or 'no fields'} besides x, but the training "
            f"set has {', '.join(sorted(fields)) or 'none'}: give x_valid as a dict with 'x' "
            "and the same fields"
        )
    levels = isinstance(train, Resident) and not train.x.is_floating_point()
    is_float = hasattr(x, "__array__") and torch.as_tensor(x).is_floating_point()
    if observation is not None and levels and is_float:
        raise UserError(
            "x_valid is floating point, but x_train has integer levels: give x_valid as "
            "stored, because fit binarizes it itself"
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
                f"callbacks has a {type(callback).__name__}: expected functions of an EpochEnd"
            )
    return listed


def first_batch(
    source: Source, observe: Observation | None, pair: Pair
) -> tuple[Tensor, dict[str, Tensor]]:
    x, named = taken(*next(source.in_order()), slice(None if source.whole else 5))
    seen = observe(x) if observe is not None else x
    return pair.cast(seen, named, at_once=source.whole), named


def check_data(
    pair: Pair, source: Source, observe: Observation | None, x: Tensor, fields: Mapping[str, Tensor]
) -> None:
    """What the dry run shows on five images, and the support of the observed site on all of
    them.
    """
    for program in (pair.model, pair.guide):
        if program.wants("index") and "index" not in fields:
            raise UserError(
                f"the {program.role} needs the field 'index', which a DataLoader does not give: "
                "give its Dataset instead"
            )
    if isinstance(source, Resident):
        observed_support.check_fields(pair, source.fields)
    structure = pair.structure(x, fields, scored=False, at_once=source.whole)
    if source.whole or structure.subsampling or not isinstance(source, Resident):
        return
    if observe is None:
        observed_support.check_support_of_set(pair, source.num_images, source.part)
    elif source.x.is_floating_point() and len(
        missing := source.x.isnan().flatten(1).any(1).nonzero()
    ):
        first = max(0, int(missing[0]) - 4)
        few, named = source.part(slice(first, first + 5))
        observed_support.check_support_of_set(
            pair, len(few), lambda rows: (observe(few), named), first
        )


def words_of(
    options: FitOptions,
    source: Source,
    valid: Source | None,
    num_steps: int,
    *parts: Any,
) -> dict[str, Any]:
    """What a training that goes on must have in common with the one that was stopped, in words."""
    goal, decay, warmup, observe = map(_words, parts)
    return {
        "num_steps": num_steps, "num_images": source.num_images, "batch_size": source.batch_size,
        "objective": goal, "optimizer": _words(options.optimizer),
        "learning_rate": options.learning_rate, "schedule": decay, "kl_weight": options.kl_weight,
        "kl_warmup": warmup, "grad_clip": options.grad_clip, "freeze": options.freeze,
        "binarize": observe, "seed": options.seed,
        "x_valid": valid.num_images if valid is not None else 0,
        "on_divergence": options.on_divergence, "processes": distributed.current().size,
    }  # fmt: skip


def _words(value: Any) -> str:
    """A choice in words that are the same in another process."""
    words = value if isinstance(value, str) else repr(value)
    return (
        words if " at 0x" not in words else getattr(value, "__qualname__", type(value).__qualname__)
    )
