"""Image data as stored: named sets, `.npz` and `.npy` files, folders of images; each with its split and SHA-256.

`load` gives an `ImageData`: integer grey levels (uint8), or floats, exactly as the source holds them. What a model
observes of them (binarized, dequantized, scaled) is the subject of `pyro_vae.observation`.

A new named set is one function from `Source` to `ImageData` (its docstring's first line is its description in
`pyro-vae list`) and one line in `DATASETS`.
"""

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_vae.errors import UserError, did_you_mean

CHANNELS = (1, 3, 4)
"""Numbers of channels by which the channel axis of a four-dimensional array is recognised."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm")

DAMAGED_NUMPY = (
    *(OSError, EOFError, ValueError, SyntaxError, KeyError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What `numpy.load` raises on files that are damaged or are something else."""

WHAT_DATA_MAY_BE = "a data set's name, a .npz or .npy file, or a folder of images"


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images as stored, in their two parts.

    Attributes:
        name: the set's name, or the name of the file or folder that it came from.
        train: (N, C, H, W), or (N, D) for flat data; uint8 levels 0 … levels − 1, or float32 values.
        test: the same for the test set.
        train_labels: (N,) int64, or None.
        test_labels: the same for the test set.
        levels: 256 for 8-bit data, 17 for the digits, 2 for binary data, None for floats.
        split: where the division into train and test comes from, in words.
        sha256: hexadecimal digest of train, then test; see `sha256`.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None
    test_labels: Tensor | None
    levels: int | None
    split: str
    sha256: str

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image: (C, H, W), or (D,)."""
        return self.train.shape[1:]

    def validation_split(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Rows of `train` to fit on and rows to hold out: two sorted int64 tensors, disjoint, together all rows.

        Args:
            fraction: part of the rows held out, in (0, 1); at least one row is left on either side.
            seed: of the random choice; the same seed holds out the same rows.

        Raises:
            UserError: `fraction` is not in (0, 1).
        """
        return _random_rows(len(self.train), fraction, seed, "validation fraction")


@dataclass(frozen=True)
class Source:
    """What a named set's loader may need: where its files are, and how to split a set that has no split."""

    root: Path
    seed: int = 0
    test_fraction: float = 0.2
    download: bool = True


Loader = Callable[[Source], ImageData]


def load(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    download: bool = True,
) -> ImageData:
    """Read a data set by its name (see `DATASETS`), or from a `.npz` or `.npy` file, or from a folder of images.

    - `.npz`: `images` (with `labels`, optional), split at random; or `train` and `test` (with `train_labels` and
      `test_labels`, optional). `.npy`: one array, as `images`.
    - Arrays: (N, H, W), (N, C, H, W), (N, H, W, C) where only the last axis has 1, 3 or 4 entries, or flat (N, D).
      Integers 0 … 255 are 8-bit grey levels; bool, and integers that are all 0 or 1, are binary; floats stay floats.
    - Folder: images of one size; subfolders are classes and give the labels; `train/` and `test/` give the split.

    Args:
        name_or_path: a name wins over a file or folder called the same (write `./digits` for that).
        data_root: the folder in which named sets have, or receive, their files; by default `$PYRO_VAE_DATA`,
            else `data` in the current folder. Nothing is written into it if the files are there.
        seed: of the random split, where the set has no split of its own.
        test_fraction: part of the images in the test set of a random split, in (0, 1).
        download: whether a named set whose files are absent may be downloaded.

    Raises:
        UserError: an unknown name, a missing or damaged file, or contents that are not images; the line names it.
    """
    text = os.fspath(name_or_path)
    root = Path(data_root if data_root is not None else os.environ.get("PYRO_VAE_DATA") or "data").expanduser()
    source = Source(root, seed, test_fraction, download)
    if text in DATASETS:
        return DATASETS[text](source)
    path = Path(text).expanduser()
    if path.is_dir():
        return _read_folder(path, source)
    if path.is_file():
        return _read_numpy(path, source)
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{path}: no such file or folder; data are {WHAT_DATA_MAY_BE}")
    raise UserError(f"{did_you_mean('data set', text, DATASETS)}; data are {WHAT_DATA_MAY_BE}")


def sha256(*tensors: Tensor) -> str:
    """Hexadecimal SHA-256 over each tensor's shape, dtype and bytes (row by row), in the order given."""
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
) -> ImageData:
    """Image data from two arrays, checked; `levels` where it isn't the 256 (or 2) that `load` takes integers for.

    Raises:
        UserError: not images, or train and test differ in kind or shape; the line names the array.
    """
    arrays = {"train": np.asarray(train), "test": np.asarray(test)}
    pixels, levels = _pixels(name, arrays, levels)
    if pixels["train"].shape[1:] != pixels["test"].shape[1:]:
        shapes = " and ".join(f"{key} {tuple(value.shape[1:])}" for key, value in pixels.items())
        raise UserError(f"{name}: images of one shape expected, got {shapes}")
    if len(pixels["train"]) < 2:
        raise UserError(f"{name}, array 'train': one image is not a training set; give at least two")
    return ImageData(
        name=name,
        train=pixels["train"],
        test=pixels["test"],
        train_labels=_labels(name, "train_labels", train_labels, len(pixels["train"])),
        test_labels=_labels(name, "test_labels", test_labels, len(pixels["test"])),
        levels=levels,
        split="the set's own split",
        sha256=sha256(pixels["train"], pixels["test"]),
    )


def random_split(
    name: str,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    levels: int | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
) -> ImageData:
    """Image data from one array, checked and divided at random; each part keeps the order of the array.

    Raises:
        UserError: not images, fewer than three, or `test_fraction` not in (0, 1).
    """
    checked, levels = _pixels(name, {"images": np.asarray(images)}, levels)
    pixels = checked["images"]
    if len(pixels) < 3:
        raise UserError(f"{name}: {len(pixels)} image(s) cannot be divided into train and test; give at least three")
    classes = _labels(name, "labels", labels, len(pixels))
    train_rows, test_rows = _random_rows(len(pixels), test_fraction, seed, "test fraction", least=2)
    train, test = pixels[train_rows], pixels[test_rows]
    return ImageData(
        name=name,
        train=train,
        test=test,
        train_labels=None if classes is None else classes[train_rows],
        test_labels=None if classes is None else classes[test_rows],
        levels=levels,
        split=f"random split, seed {seed}, test fraction {test_fraction:g}",
        sha256=sha256(train, test),
    )


# ---------------------------------------------------------------------------------------------------- named sets


def digits(source: Source) -> ImageData:
    """1797 handwritten digits, 8x8, 17 grey levels; embedded (scikit-learn), split at random."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    return random_split("digits", images, bunch.target, levels=17, seed=source.seed, test_fraction=source.test_fraction)


def mnist(source: Source) -> ImageData:
    """60000 + 10000 handwritten digits, 28x28, 8 bits."""
    return _idx_set("mnist", "MNIST", source)


def fashion_mnist(source: Source) -> ImageData:
    """60000 + 10000 pieces of clothing, 28x28, 8 bits."""
    return _idx_set("fashion-mnist", "FashionMNIST", source)


def kmnist(source: Source) -> ImageData:
    """60000 + 10000 cursive Japanese characters, 28x28, 8 bits."""
    return _idx_set("kmnist", "KMNIST", source)


def cifar10(source: Source) -> ImageData:
    """50000 + 10000 photographs in ten classes, 3x32x32, 8 bits."""
    datasets = _torchvision_datasets()
    archive = source.root / datasets.CIFAR10.filename
    unpacked = source.root / datasets.CIFAR10.base_folder
    with tempfile.TemporaryDirectory() as scratch:
        root = source.root
        if archive.is_file() and not unpacked.is_dir():
            # Unpack beside a link, so that a read-only root serves; checked first, as a download would overwrite it.
            if not datasets.utils.check_integrity(str(archive), datasets.CIFAR10.tgz_md5):
                raise UserError(f"{archive}: damaged (not the published MD5); delete it and download it again")
            root = Path(scratch)
            (root / archive.name).symlink_to(archive.resolve())
        fetch = source.download or root != source.root
        try:
            parts = [datasets.CIFAR10(str(root), train=train, download=fetch) for train in (True, False)]
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise _absent("cifar10", [archive.name], source, source.root, error) from error
    train, test = parts
    return own_split("cifar10", train.data, test.data, train.targets, test.targets)


DATASETS: dict[str, Loader] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "kmnist": kmnist,
    "cifar10": cifar10,
}
"""The named sets; the first line of a loader's docstring describes its set."""


def _torchvision_datasets() -> Any:
    """`torchvision.datasets`, or a sentence on why it does not import."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: operator torchvision::nms does not exist
        raise UserError(
            f"torchvision does not match torch {torch.__version__} ({_one_line(error)}); "
            "install a matching pair: pip install torch torchvision"
        ) from error
    return datasets


def _absent(name: str, files: list[str], source: Source, folder: Path, error: Exception | None) -> UserError:
    """The sentence for a named set whose files are neither there nor to be had."""
    why = f"the download failed: {_one_line(error)}" if source.download and error else "downloads are off"
    return UserError(
        f"{name}: not found in {folder}, and {why}; put {', '.join(files)} there, "
        "or name the folder that has them with --data-root or $PYRO_VAE_DATA"
    )


def _one_line(error: Exception | None) -> str:
    return " ".join(str(error).split())[:300]


# --------------------------------------------------------------------------------------------------- IDX files


def _idx_set(name: str, folder: str, source: Source) -> ImageData:
    """A set in MNIST's four IDX files, read in place, packed or not; torchvision downloads them if they are absent."""
    raw = source.root / folder / "raw"
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    files = {stem: _idx_file(source.root, folder, stem) for stem in stems}
    if files[stems[0]] is None or files[stems[2]] is None:
        packed = [f"{stem}.gz" for stem in stems]
        if not source.download:
            raise _absent(name, packed, source, raw, None)
        dataset = getattr(_torchvision_datasets(), folder)
        try:
            dataset(str(source.root), download=True)
        except (OSError, RuntimeError, AssertionError, http.client.HTTPException) as error:
            raise _absent(name, packed, source, raw, error) from error
        files = {stem: _idx_file(source.root, folder, stem) for stem in stems}
    arrays = [None if file is None else _read_idx(file) for file in files.values()]
    train, train_labels, test, test_labels = arrays
    if train is None or test is None:
        raise _absent(name, [f"{stem}.gz" for stem in stems], source, raw, FileNotFoundError("no IDX files came"))
    return own_split(name, train, test, train_labels, test_labels)


def _idx_file(root: Path, folder: str, stem: str) -> Path | None:
    """The file as torchvision lays it out, or without `raw`; `root` may also be the set's own folder."""
    homes = [root / folder / "raw", root / folder]
    if root.name == folder:
        homes += [root / "raw", root]
    candidates = (home / file for home in homes for file in (stem, f"{stem}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file: two zeros, the type (8: bytes), the number of axes, their sizes, the data.

    Format: http://yann.lecun.com/exdb/mnist (four-byte sizes, most significant byte first).
    """
    again = "delete it and get it again"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable gzip file ({_one_line(error)}); {again}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 3:
        what = "a web page" if content.lstrip()[:1] == b"<" else "something else"
        raise UserError(f"{path}: expected an IDX file of bytes, found {what}; {again}")
    header = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    if len(content) != header + math.prod(shape):
        found = len(content) - header
        raise UserError(f"{path}: truncated or damaged, {math.prod(shape)} bytes expected and {found} found; {again}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


# ------------------------------------------------------------------------------------------- .npz, .npy, folders


def _read_numpy(path: Path, source: Source) -> ImageData:
    """A `.npz` or `.npy` file; never a pickle, which could run code."""
    if path.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: not a kind of data that is read; data are {WHAT_DATA_MAY_BE}")
    arrays = _numpy_arrays(path)
    if "images" in arrays and ("train" in arrays or "test" in arrays):
        raise UserError(f"{path}: holds 'images' and also 'train' or 'test'; keep 'images', or 'train' and 'test'")
    if "images" in arrays:
        return random_split(
            path.name, arrays["images"], arrays.get("labels"), seed=source.seed, test_fraction=source.test_fraction
        )
    return own_split(path.name, arrays["train"], arrays["test"], arrays.get("train_labels"), arrays.get("test_labels"))


def _numpy_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file that concern us: `images`, or `train` and `test`, and their labels."""
    known = ("images", "labels", "train", "test", "train_labels", "test_labels")
    try:
        with path.open("rb") as stream:  # opened here, as NumPy leaves a damaged zip open
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"images": content}
            present = list(content.files)
            arrays = {key: content[key] for key in known if key in present}
    except (MemoryError, OverflowError) as error:
        raise UserError(f"{path}: damaged, or larger than the memory ({_one_line(error)})") from error
    except DAMAGED_NUMPY as error:
        # NumPy's own text advises to allow pickles: it is not repeated.
        if "pickle" in str(error).lower():
            raise UserError(
                f"{path}: holds Python objects or is no NumPy file; only plain arrays of numbers are read, "
                "as numpy.savez(path, images=array) writes them"
            ) from None
        raise UserError(f"{path}: damaged, or no NumPy file ({_one_line(error)}); write it again") from error
    if "images" not in arrays and not ("train" in arrays and "test" in arrays):
        raise UserError(
            f"{path}: holds {', '.join(map(repr, present)) or 'nothing'}; expected the array 'images' "
            "(optional: 'labels'), or 'train' and 'test' (optional: 'train_labels', 'test_labels')"
        )
    return arrays


def _read_folder(path: Path, source: Source) -> ImageData:
    """A folder of images, or the two folders `train` and `test` of one."""
    name = path.resolve().name
    if (path / "train").is_dir() and (path / "test").is_dir():
        train_files, classes = _image_files(path / "train", None)
        test_files, _ = _image_files(path / "test", classes)
        first = train_files[0][0]
        train, test = (_read_images(files, first) for files in (train_files, test_files))
        return own_split(name, train, test, *(_file_labels(files) for files in (train_files, test_files)))
    files, _ = _image_files(path, None)
    return random_split(
        name,
        _read_images(files, files[0][0]),
        _file_labels(files),
        seed=source.seed,
        test_fraction=source.test_fraction,
    )


def _image_files(folder: Path, classes: list[str] | None) -> tuple[list[tuple[Path, int | None]], list[str]]:
    """Image files in the order of their names, each with its class; and the classes, whose position is the label."""
    loose = _images_in(folder)
    subfolders = {sub.name: _images_in(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    filled = {name: files for name, files in subfolders.items() if files and not name.startswith(".")}
    if loose and filled:
        raise UserError(
            f"{folder}: images lie both in it ({loose[0].name}) and in its subfolder {next(iter(filled))!r}; "
            "put all into class subfolders, or none"
        )
    if loose:
        return [(file, None) for file in loose], []
    if not filled:
        raise UserError(f"{folder}: no images in it or in its subfolders ({' '.join(IMAGE_SUFFIXES)} are read)")
    names = list(filled) if classes is None else classes
    for name in filled:
        if name not in names:
            raise UserError(f"{folder / name}: a class that the training set lacks")
    return [(file, names.index(name)) for name, files in filled.items() for file in files], names


def _images_in(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(file for file in files if not file.name.startswith("."))


def _file_labels(files: list[tuple[Path, int | None]]) -> list[int] | None:
    labels = [label for _, label in files if label is not None]
    return labels or None


def _read_images(files: list[tuple[Path, int | None]], first: Path) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, 3); every image has the size and the channels of the file `first`."""
    expected = _read_image(first).shape
    pixels = np.empty((len(files), *expected), np.uint8)
    for row, (file, _) in enumerate(files):
        image = _read_image(file)
        if image.shape != expected:
            raise UserError(
                f"{file}: {_size(image.shape)}, but {first.name} is {_size(expected)}; "
                "make all images one size, all grey or all in colour"
            )
        pixels[row] = image
    return pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels


def _read_image(file: Path) -> NDArray[np.uint8]:
    """(H, W), or (H, W, 3), 8 bits; an opaque alpha channel is dropped."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{file}: more than 8 bits a pixel (mode {image.mode}); store it in a .npz as floats")
            grey = image.mode in ("1", "L", "LA", "La")
            if image.has_transparency_data:
                opaque = image.convert("RGBA")
                if np.asarray(opaque)[..., 3].min() < 255:
                    raise UserError(f"{file}: has transparent pixels; flatten it onto a background")
                return np.asarray(opaque.convert("L" if grey else "RGB"))
            return np.asarray(image.convert("L" if grey else "RGB"))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: not a readable image ({_one_line(error)}); remove or replace it") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} wide, {shape[0]} high, {'in colour' if len(shape) == 3 else 'grey'}"


# ------------------------------------------------------------------------------------------------------- checks


def _random_rows(number: int, fraction: float, seed: int, what: str, least: int = 1) -> tuple[Tensor, Tensor]:
    """Rows 0 … number − 1 divided at random, both parts sorted; `least` rows at least stay in the first."""
    if not 0 < fraction < 1:
        raise UserError(f"{what} {fraction}: expected a number between 0 and 1, such as 0.1")
    if number < least + 1:
        raise UserError(f"{what} {fraction}: {number} image(s) cannot be divided; give at least {least + 1}")
    held_out = min(max(1, round(fraction * number)), number - least)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def _pixels(name: str, arrays: Mapping[str, NDArray[Any]], levels: int | None) -> tuple[dict[str, Tensor], int | None]:
    """The arrays as tensors (N, C, H, W) or (N, D) of uint8 or float32, checked; and their number of levels."""
    kinds = {key: _kind(f"{name}, array {key!r}", array) for key, array in arrays.items()}
    if len(set(kinds.values())) > 1:
        found = " and ".join(f"{key} is {array.dtype}" for key, array in arrays.items())
        raise UserError(f"{name}: {found}; store both as 8-bit integers, or both as floats")
    pixels = {key: _checked(f"{name}, array {key!r}", array) for key, array in arrays.items()}
    if "float" in kinds.values():
        return pixels, None
    largest = max(int(value.max()) for value in pixels.values())
    if levels is None:
        levels = 2 if largest <= 1 else 256
    if largest >= levels:
        raise UserError(f"{name}: level {largest} found where levels 0 to {levels - 1} are expected")
    return pixels, levels


def _kind(where: str, array: NDArray[Any]) -> str:
    """`binary`, `integer` or `float`, by the dtype."""
    kinds = {"b": "binary", "u": "integer", "i": "integer", "f": "float"}
    if array.dtype.kind not in kinds:
        raise UserError(f"{where}: dtype {array.dtype} is not of images; expected uint8, or floats")
    return kinds[array.dtype.kind]


def _checked(where: str, array: NDArray[Any]) -> Tensor:
    """One array as a tensor (N, C, H, W) or (N, D), uint8 or float32; every value is checked."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise UserError(
            f"{where}: shape {array.shape}; expected (N, H, W), (N, C, H, W), (N, H, W, C) or (N, D), none of them 0"
        )
    if array.dtype.kind in "ui" and (array.min() < 0 or array.max() > 255):
        index, value = _first(array, (array < 0) | (array > 255))
        raise UserError(f"{where}: image {index} holds {value}; integers are levels 0 to 255, store others as floats")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = array.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            index, value = _first(array, ~np.isfinite(values))
            raise UserError(f"{where}: image {index} holds {value}; expected finite float32, remove or repair it")
    else:
        values = array.astype(np.uint8, copy=False)
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in CHANNELS and values.shape[1] not in CHANNELS:
        values = values.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _first(array: NDArray[Any], wrong: NDArray[np.bool_]) -> tuple[int, Any]:
    """The image and the value of the first wrong entry."""
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return int(position[0]), array[position].item()


def _labels(name: str, key: str, labels: ArrayLike | None, number: int) -> Tensor | None:
    """(N,) int64."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind not in "biu" or array.shape != (number,):
        raise UserError(
            f"{name}, array {key!r}: {array.dtype} of shape {array.shape}; expected {number} integers, one an image"
        )
    return torch.from_numpy(array.astype(np.int64))
