"""`.npz` and `.npy` files and folders of images as arrays: `images` with `labels`, or `train` and
`test` with theirs.
"""

import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae import memory
from pyro_vae.errors import UserError, did_you_mean, one_line

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
