"""`.npz` and `.npy` files and folders of images as arrays: `images` with `labels`, or `train` and
`test` with theirs.
"""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.errors import UserError, one_line

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
    ".ppm",
    ".pbm",
)

DAMAGED_NUMPY = (
    *(OSError, EOFError, ValueError, SyntaxError, KeyError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What `numpy.load` raises on files that are damaged or are something else."""

WHAT_DATA_MAY_BE = "a data set's name, a .npz or .npy file, or a folder of images"


def read_numpy(path: Path) -> dict[str, Any]:
    """A `.npz` or `.npy` file; never a pickle, which could run code."""
    if path.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: not a kind of data that is read; data are {WHAT_DATA_MAY_BE}")
    arrays = _numpy_arrays(path)
    if "images" in arrays and ("train" in arrays or "test" in arrays):
        raise UserError(
            f"{path}: holds 'images' and also 'train' or 'test'; keep 'images', or 'train' and "
            "'test'"
        )
    return arrays


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
        raise UserError(
            f"{path}: damaged, or larger than the memory ({one_line(error)})"
        ) from error
    except DAMAGED_NUMPY as error:
        # NumPy's own text advises to allow pickles: it is not repeated.
        if "pickle" in str(error).lower():
            raise UserError(
                f"{path}: holds Python objects or is no NumPy file; only plain arrays of numbers "
                "are read, as numpy.savez(path, images=array) writes them"
            ) from None
        raise UserError(
            f"{path}: damaged, or no NumPy file ({one_line(error)}); write it again"
        ) from error
    if "images" not in arrays and not ("train" in arrays and "test" in arrays):
        raise UserError(
            f"{path}: holds {', '.join(map(repr, present)) or 'nothing'}; expected the array "
            "'images' (optional: 'labels'), or 'train' and 'test' (optional: 'train_labels', "
            "'test_labels')"
        )
    return arrays


def read_folder(path: Path) -> dict[str, Any]:
    """A folder of images, or the two folders `train` and `test` of one."""
    if (path / "train").is_dir() and (path / "test").is_dir():
        train_files, classes = _image_files(path / "train", None)
        test_files, _ = _image_files(path / "test", classes)
        first = train_files[0][0]
        train, test = (_read_images(files, first) for files in (train_files, test_files))
        labels = {
            "train_labels": _file_labels(train_files),
            "test_labels": _file_labels(test_files),
        }
        return {"train": train, "test": test, **labels}
    files, _ = _image_files(path, None)
    return {"images": _read_images(files, files[0][0]), "labels": _file_labels(files)}


def _image_files(
    folder: Path, classes: list[str] | None
) -> tuple[list[tuple[Path, int | None]], list[str]]:
    """Image files in the order of their names, each with its class; and the classes, whose position
    is the label.
    """
    loose = _images_in(folder)
    subfolders = {sub.name: _images_in(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    filled = {
        name: files for name, files in subfolders.items() if files and not name.startswith(".")
    }
    if loose and filled:
        raise UserError(
            f"{folder}: images lie both in it ({loose[0].name}) and in its subfolder "
            f"{next(iter(filled))!r}; put all into class subfolders, or none"
        )
    if loose:
        return [(file, None) for file in loose], []
    if not filled:
        raise UserError(
            f"{folder}: no images in it or in its subfolders ({' '.join(IMAGE_SUFFIXES)} are read)"
        )
    names = list(filled) if classes is None else classes
    for name in filled:
        if name not in names:
            raise UserError(f"{folder / name}: a class that the training set lacks")
    return [(file, names.index(name)) for name, files in filled.items() for file in files], names


def _images_in(folder: Path) -> list[Path]:
    files = (
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
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
                raise UserError(
                    f"{file}: more than 8 bits a pixel (mode {image.mode}); store it in a .npz as "
                    "floats"
                )
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
        raise UserError(
            f"{file}: not a readable image ({one_line(error)}); remove or replace it"
        ) from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} wide, {shape[0]} high, {'in colour' if len(shape) == 3 else 'grey'}"
