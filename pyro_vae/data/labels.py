"""Labels of any kind as classes: whole numbers from 0, and names where names were given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.rng import permutation

Classes = tuple[str, ...] | None
"""The classes' names, by number; None where the labels were numbers."""


def natural(text: str) -> list[tuple[int, int | str]]:
    """A sort key by which ``img2`` comes before ``img10``."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def as_classes(
    name: str, labels: Mapping[str, Any], numbers: Mapping[str, int], known: Classes = None
) -> tuple[dict[str, Tensor | None], Classes]:
    """The label arrays, by key, as (N,) int64, and the names of the classes, which may be known.

    Whole numbers are kept. Text gets the numbers of its values in natural order, those of all
    arrays together.

    Raises:
        UserError: not one label an image, or neither whole numbers nor text.
    """
    arrays = {
        key: _one_each(name, key, value, numbers[key])
        for key, value in labels.items()
        if value is not None
    }
    texts = {key for key, array in arrays.items() if array.dtype.kind == "U"}
    if texts and len(texts) < len(arrays):
        raise UserError(f"{name}: {min(texts)!r} is text, but the other labels are numbers")
    found: dict[str, Tensor | None] = dict.fromkeys(labels)
    if not texts:
        return found | {k: torch.from_numpy(v.astype(np.int64)) for k, v in arrays.items()}, None
    classes = sorted(set(np.concatenate(list(arrays.values())).tolist()), key=natural)
    if known is not None:
        for each in classes:
            if each not in known:
                raise UserError(f"{name}: {did_you_mean('class', each, known)}")
        classes = list(known)
    of = {each: number for number, each in enumerate(classes)}
    for key, array in arrays.items():
        found[key] = torch.tensor([of[each] for each in array.tolist()])
    return found, tuple(classes)


def _one_each(name: str, key: str, labels: Any, number: int) -> NDArray[Any]:
    """(N,) integers or text."""
    array = np.asarray(labels)
    where = f"{name}, array {key!r}"
    if array.shape == (number, 1):
        array = array[:, 0]
    if array.shape != (number,):
        raise UserError(
            f"{where}: shape {array.shape}; expected {number} labels, one for each image"
        )
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "O":
        array = _text(where, array.tolist())
    if array.dtype.kind == "f":
        wrong = ~np.isfinite(array) | (array != np.floor(array))
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{where}: label {row} is {array[row]}; a class is a whole number or a name"
            )
    if array.dtype.kind not in "biufU":
        raise UserError(
            f"{where}: {array.dtype}; expected {number} integers or names, one for each image"
        )
    return array


def _text(where: str, values: Iterable[Any]) -> NDArray[Any]:
    held = list(values)
    for row, value in enumerate(held):
        if not isinstance(value, str):
            raise UserError(f"{where}: label {row} is {value!r}; expected whole numbers, or names")
    return np.asarray(held, dtype=np.str_)


def refuse_unfit(name: str, labels: Iterable[Tensor | None]) -> None:
    """A ``UserError`` for labels that are no classes 0 … C − 1 of so many images: for programs that
    take them.
    """
    given = [part for part in labels if part is not None]
    if not given:
        return
    every = torch.cat(given)
    largest = int(every.max())
    if bool((every < 0).any()):
        image = int((every < 0).nonzero()[0])
        raise UserError(
            f"{name}: image {image} is of class {int(every[image])}, but the classes are "
            f"numbered from 0 (to {largest} here). Number them so, or give names"
        )
    if largest >= len(every):
        raise UserError(
            f"{name}: the labels go up to {largest}, more classes than the {len(every)} images; "
            "number the classes from 0, or give names"
        )


def few_labels(y: Tensor, number: int, seed: int) -> Tensor:
    """Which of the labels ``y``, ``(N,)``, to keep: ``number`` of them, as many of one class as of
    another up to one, chosen at random.

    Raises:
        UserError: a class has too few images.
    """
    order = permutation(len(y), seed)
    classes = permutation(int(y.max()) + 1, seed).tolist()
    kept = torch.zeros(len(y), dtype=torch.bool)
    for place, each in enumerate(classes):
        share = number // len(classes) + (place < number % len(classes))
        rows = order[y[order] == each][:share]
        if len(rows) < share:
            raise UserError(
                f"--labels {number} asks for {share} images of class {each}, but the training "
                f"set has {len(rows)}: give a smaller number"
            )
        kept[rows] = True
    return kept
