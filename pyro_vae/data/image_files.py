"""Folders of images as arrays, by Pillow."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.data.labels import natural
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
