"""`.npz` and `.npy` files and folders of images as arrays: `images` with `labels`, or `train` and
`test` with theirs.
"""

import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae import memory
from pyro_vae.data.labels import natural
from pyro_vae.errors import UserError, did_you_mean, one_line

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

WHAT_DATA_MAY_BE = (
    "a data set's name, a .npz or .npy file, a .csv or .tsv table of numbers, or a folder of images"
)

MAPPED = 2**26
"""Bytes from which a `.npy` file is mapped into memory, so that its checks need no second copy."""

PACKED, UNPACKED = 200, 2**30
"""How many times a file of more than so many bytes may grow as it is unpacked: digits on a black
ground grow tenfold.
"""


@dataclass(frozen=True)
class Source:
    """Where a set's files are, what is meant of one that has names of its own, and how to split it.

    Attributes:
        root: the folder of the named sets' files.
        seed, test_fraction: of the random split, where the set has no split of its own.
        download: whether files that are absent may be downloaded.
        missing: whether an entry may have no value.
        images_key: the array of a `.npz` file with the images.
        columns: the columns of a table, as in `a,b,pixel0:pixel783`.
        label: the array of a `.npz` file, or the column of a table, with the labels.
    """

    root: Path = Path("data")
    seed: int = 0
    test_fraction: float = 0.2
    download: bool = True
    missing: bool = False
    images_key: str | None = None
    columns: str | None = None
    label: str | None = None

    def refuse(self, where: Path | str, *names: str) -> None:
        """A `UserError` for the first of these that is given where it has no meaning."""
        for name in names:
            if getattr(self, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: {where} has no names to "
                    "choose from; leave the option out"
                )


def read_numpy(path: Path, source: Source = Source()) -> dict[str, Any]:
    """A `.npz` or `.npy` file; never a pickle, which could run code."""
    if path.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: this kind of file can't be read; data are {WHAT_DATA_MAY_BE}")
    source.refuse(path, "columns")
    arrays = _numpy_arrays(path, source)
    if "images" in arrays and ("train" in arrays or "test" in arrays):
        raise UserError(
            f"{path}: has 'images' and also 'train' or 'test'; keep 'images', or 'train' and 'test'"
        )
    return arrays


def _numpy_arrays(path: Path, source: Source) -> dict[str, NDArray[Any]]:
    """The arrays of a file that concern us: `images`, or `train` and `test`, and their labels."""
    try:
        if path.stat().st_size >= MAPPED and path.suffix == ".npy":
            source.refuse(path, "images_key", "label")
            return {"images": np.load(path, mmap_mode="c", allow_pickle=False)}
        with path.open("rb") as stream:  # opened here, as NumPy leaves a damaged zip open
            if zipfile.is_zipfile(stream):
                refuse_bomb(path, zipfile.ZipFile(stream))
            stream.seek(0)
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                source.refuse(path, "images_key", "label")
                return {"images": content}
            wanted = _wanted(path, list(content.files), source)
            return {name: content[key] for name, key in wanted.items()}
    except UserError:
        raise
    except (MemoryError, OverflowError) as error:
        raise UserError(
            f"{path}: damaged, or larger than the memory ({one_line(error)})"
        ) from error
    except DAMAGED_NUMPY as error:
        # NumPy's own text advises to allow pickles: it is not repeated.
        if "pickle" in str(error).lower():
            raise UserError(
                f"{path}: it has Python objects in it, or is not a NumPy file. Only plain "
                "arrays of numbers are read: write them with numpy.savez(path, images=array)"
            ) from None
        raise UserError(
            f"{path}: damaged, or not a NumPy file ({one_line(error)}); write it again"
        ) from error


def _wanted(path: Path, present: list[str], source: Source) -> dict[str, str]:
    """Our names of arrays, each with the file's own."""
    for key in (source.images_key, source.label):
        if key is not None and key not in present:
            raise UserError(f"{path}: {did_you_mean('array', key, present)}")
    known = ("images", "labels", "train", "test", "train_labels", "test_labels")
    wanted = {name: name for name in known if name in present}
    if source.images_key is not None:
        labels = {"labels": "labels"} if "labels" in present else {}
        wanted = {"images": source.images_key, **labels}
    if source.label is not None:
        wanted["labels"] = source.label
    if "images" not in wanted and not ("train" in wanted and "test" in wanted):
        raise UserError(
            f"{path}: has {', '.join(map(repr, present)) or 'nothing'} in it; expected the "
            "array 'images' (optional: 'labels'), or 'train' and 'test' (optional: "
            "'train_labels', 'test_labels'); name others with --images-key and --label"
        )
    return wanted


def refuse_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    """A `UserError` where the archive's own directory says that it unpacks to more than there can
    be.
    """
    packed = path.stat().st_size
    unpacked = sum(each.file_size for each in archive.infolist())
    memory.refuse_beyond(unpacked, f"{path}: unpacked it", "give a part of it, or a .npy file")
    if unpacked > max(UNPACKED, PACKED * packed):
        raise UserError(
            f"{path}: {memory.in_words(packed)} that unpack to {memory.in_words(unpacked)}. If "
            "the file is your own, write it with numpy.savez, which does not compress"
        )


def read_folder(path: Path) -> dict[str, Any]:
    """A folder of images, or the two folders `train` and `test` of one; labels are the classes'
    names.
    """
    own = {part: path / part for part in ("train", "test") if (path / part).is_dir()}
    folders = own if len(own) == 2 else {"images": path}
    parts = {part: _image_files(folder) for part, folder in folders.items()}
    first = next(iter(parts.values()))
    known = {label for _, label in first}
    for file, label in parts.get("test", ()):
        if label not in known:
            raise UserError(f"{file.parent}: a class that is not in the training set")
    colour, arrays = _in_colour(first), dict[str, Any]()
    for part, files in parts.items():
        images, labels = _read_images(files, first[0][0], colour)
        arrays |= {part: images, "labels" if part == "images" else f"{part}_labels": labels}
    return arrays


File = tuple[Path, str | None]
"""An image's file and the name of its class."""


def _image_files(folder: Path) -> list[File]:
    """Image files in the natural order of their names, each with its class (subfolder)."""
    loose = _images_in(folder)
    subfolders = [sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".")]
    filled = {
        sub.name: files
        for sub in sorted(subfolders, key=lambda sub: natural(sub.name))
        if (files := _images_in(sub))
    }
    if loose and filled:
        raise UserError(
            f"{folder}: there are images both in it ({loose[0].name}) and in its subfolder "
            f"{next(iter(filled))!r}; put all of them into subfolders, one for each class, or "
            "none"
        )
    if loose:
        return [(file, None) for file in loose]
    if not filled:
        raise UserError(
            f"{folder}: no images in it or in its subfolders ({' '.join(IMAGE_SUFFIXES)} are read)"
        )
    return [(file, name) for name, files in filled.items() for file in files]


def _images_in(folder: Path) -> list[Path]:
    files = (
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    shown = (file for file in files if not file.name.startswith("."))
    return sorted(shown, key=lambda file: natural(file.name))


def _in_colour(files: list[File]) -> bool:
    """Whether the set is of colour images; palettes of greys are what the others are, and grey
    among themselves.
    """
    return next((found for file, _ in files if (found := _is_colour(file)) is not None), False)


def _read_images(
    files: list[File], first: Path, colour: bool
) -> tuple[NDArray[np.uint8], list[str] | None]:
    """(N, H, W) or (N, 3, H, W), every frame of every file, all of the size of the file `first`;
    and the class of each, where they have classes.
    """
    expected = next(_read_frames(first, colour)).shape
    numbers = [_frames(file) for file, _ in files]
    pixels, row = np.empty((sum(numbers), *expected), np.uint8), 0
    for file, _ in files:
        for image in _read_frames(file, colour):
            if image.shape != expected:
                raise UserError(
                    f"{file}: {_size(image.shape)}, but {first.name} is {_size(expected)}; "
                    "make all images one size, all grey or all in colour"
                )
            pixels[row] = image
            row += 1
    named = [(label, n) for (_, label), n in zip(files, numbers, strict=True) if label is not None]
    labels = [label for label, number in named for _ in range(number)]
    return pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels, labels or None


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                yield image
    except UserError:
        raise
    except _unreadable() as error:
        raise UserError(
            f"{file}: not a readable image ({one_line(error)}); remove or replace it"
        ) from error


def _unreadable() -> tuple[type[Exception], ...]:
    """What Pillow raises of a file that is damaged, something else, or a bomb."""
    from PIL import Image

    bombs = Image.DecompressionBombError, Image.DecompressionBombWarning
    return OSError, SyntaxError, ValueError, EOFError, *bombs


def _frames(file: Path) -> int:
    with _opened(file) as image:
        return getattr(image, "n_frames", 1)


def _is_colour(file: Path) -> bool | None:
    """None for a palette of greys, which serves as either."""
    with _opened(file) as image:
        if image.mode in GREY or image.mode.startswith(("I", "F")):
            return False
        return None if image.mode in PALETTE and _is_grey(image) else True


GREY, PALETTE = ("1", "L", "LA", "La"), ("P", "PA")


def _is_grey(image: Any) -> bool:
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def _read_frames(file: Path, colour: bool) -> Iterator[NDArray[np.uint8]]:
    """Each frame as (H, W), or (H, W, 3), 8 bits, the right way up; an opaque alpha channel is
    dropped.
    """
    from PIL import ImageOps, ImageSequence

    with _opened(file) as opened:
        palette = opened.mode in PALETTE
        for frame in ImageSequence.Iterator(opened):
            image = ImageOps.exif_transpose(frame)
            if image.mode.startswith(("I", "F")):
                raise UserError(
                    f"{file}: it has more than 8 bits per pixel (mode {image.mode}); store it "
                    "in a .npz as floats"
                )
            grey = image.mode in GREY or (palette and not colour and _is_grey(image))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                if np.asarray(image)[..., 3].min() < 255:
                    raise UserError(f"{file}: it has transparent pixels; put it on a background")
            yield np.asarray(image.convert("L" if grey else "RGB"))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} wide, {shape[0]} high, {'in colour' if len(shape) == 3 else 'grey'}"
