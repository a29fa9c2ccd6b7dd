"""Image data: arrays, checked and divided into train and test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_vae.data.arrays import are_levels, checked_pixels, random_rows
from pyro_vae.data.labels import Classes, as_classes
from pyro_vae.errors import UserError
from pyro_vae.formatting import Printed
from pyro_vae.tensors import one_of


@dataclass(frozen=True, eq=False)
class ImageData(Printed):
    """A data set as stored: training and test images, and their labels.

    Attributes:
        name: the set's name, or the name of the file or folder.
        train: training images ``(N, C, H, W)``, or ``(N, D)`` for flat data; uint8 levels 0 …
            levels − 1, or float32 values.
        test: the test images, of the same kind.
        train_labels: ``(N,)`` int64, or None.
        test_labels: the same for the test set.
        levels: 256 for 8-bit data, 17 for the digits, 2 for binary data, None for floats.
        split: where the division into train and test comes from, in words.
        sha256: hexadecimal digest of train, then test; see `sha256`.
        classes: the names of the classes 0, 1, …, if the labels were names; else None.
        table: whether these are rows of a table, which can't be drawn as pictures.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None
    test_labels: Tensor | None
    levels: int | None
    split: str
    sha256: str
    classes: Classes = None
    table: bool = False

    @property
    def one(self) -> str:
        """What one row is called, "image" or "row"."""
        return one_of(self.train)

    def __str__(self) -> str:
        shape, of = " × ".join(map(str, self.event_shape)), self.one
        what = f"{of}s of {shape}" + (" features" if of == "row" else "")
        values = "floats" if self.levels is None else f"{self.levels} levels"
        labels = "no labels"
        if self.train_labels is not None:
            number = len(self.classes) if self.classes else len(self.train_labels.unique())
            labels = f"{number} classes"
        return (
            f"{self.name}: {len(self.train)} train and {len(self.test)} test {what}, {values}, "
            f"{labels}"
        )

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image, (C, H, W) or (D,)."""
        return self.train.shape[1:]

    @property
    def largest(self) -> float:
        """The largest value that is stored."""
        return max(float(part.nan_to_num().max()) for part in (self.train, self.test))

    def with_levels(self, levels: int) -> ImageData:
        """The same whole numbers with another number of possible levels.

        Raises:
            UserError: they are floats, or one of them is larger.
        """
        largest = self.largest
        if self.levels is None or largest >= levels:
            what = (
                ("floats, and floats have no levels")
                if self.levels is None
                else f"up to {largest:g}"
            )
            raise UserError(
                f"{self.name}: levels {levels} is for whole numbers from 0 to {levels - 1}, but "
                f"these are {what}: leave --levels out, or give their number of levels"
            )
        return replace(self, levels=levels)

    def validation_split(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Split the rows of `train` into rows to fit on and rows for validation.

        Args:
            fraction: the share of validation rows, in (0, 1); each part has at least one row.
            seed: of the random choice; the same seed gives the same rows.

        Returns:
            Two sorted int64 tensors, disjoint, together all rows.

        Raises:
            UserError: `fraction` is not in (0, 1).
        """
        return random_rows(len(self.train), fraction, seed, "validation fraction", one=self.one)


def sha256(*tensors: Tensor) -> str:
    """Hexadecimal SHA-256 over each tensor's shape, dtype and bytes (row by row), in the order
    given.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        stored = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(stored.shape)} {stored.dtype} ".encode())
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def own_split(
    name: str,
    train: ArrayLike,
    test: ArrayLike,
    train_labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    *,
    levels: int | None = None,
    missing: bool = False,
) -> ImageData:
    """Image data from two arrays, checked; `levels` where it isn't the 256 (or 2) that `load` takes
    integers for.

    Raises:
        UserError: not images, or train and test differ in kind or shape; the line names the array.
    """
    arrays = {"train": np.asarray(train), "test": np.asarray(test)}
    pixels, levels = checked_pixels(name, arrays, levels, missing)
    if pixels["train"].shape[1:] != pixels["test"].shape[1:]:
        shapes = " and ".join(f"{key} {tuple(value.shape[1:])}" for key, value in pixels.items())
        raise UserError(f"{name}: images of one shape expected, got {shapes}")
    if len(pixels["train"]) < 2:
        raise UserError(f"{name}, array 'train': it has one image; give at least two")
    labels, classes = as_classes(
        name,
        {"train_labels": train_labels, "test_labels": test_labels},
        {"train_labels": len(pixels["train"]), "test_labels": len(pixels["test"])},
    )
    train, test = pixels.values()
    y, test_y = labels.values()
    split, digest = "the set's own split", sha256(train, test)
    return ImageData(name, train, test, y, test_y, levels, split, digest, classes)


def random_split(
    name: str,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    levels: int | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    missing: bool = False,
) -> ImageData:
    """Image data from one array, checked and divided at random; each part keeps the order of the
    array.

    Raises:
        UserError: not images, fewer than three, or `test_fraction` not in (0, 1).
    """
    checked, levels = checked_pixels(name, {"images": np.asarray(images)}, levels, missing)
    pixels = checked["images"]
    if len(pixels) < 3:
        raise UserError(
            f"{name}: {len(pixels)} {one_of(pixels)}(s) cannot be divided into train and test; give at least "
            "three"
        )
    found, classes = as_classes(name, {"labels": labels}, {"labels": len(pixels)})
    rows = random_rows(len(pixels), test_fraction, seed, "test fraction", least=2)
    train, test = (pixels[each] for each in rows)
    given = found["labels"]
    y, test_y = (None if given is None else given[each] for each in rows)
    split = f"random split, seed {seed}, test fraction {test_fraction:g}"
    return ImageData(name, train, test, y, test_y, levels, split, sha256(train, test), classes)


@dataclass(frozen=True)
class Likeness:
    """The scale of a set, for others that are to be seen as it was.

    Attributes:
        levels: of the set; None for floats.
        classes: the classes' names, if they have any.
    """

    levels: int | None
    classes: Classes = None

    def scaled(self, name: str, images: NDArray[Any]) -> NDArray[Any]:
        """The values on that scale; whole numbers 0 and 1 are floats too."""
        floats = images.dtype.kind == "f" and not are_levels(images)
        if floats and self.levels is not None:
            raise UserError(
                f"{name}: floats, but the other set has {self.levels} levels, 0 to "
                f"{self.levels - 1}: store the levels"
            )
        if not floats and self.levels is None:
            if images.min() < 0 or images.max() > 1:
                raise UserError(
                    f"{name}: whole numbers, but the other set has floats: store floats"
                )
            return images.astype(np.float32)
        return images
