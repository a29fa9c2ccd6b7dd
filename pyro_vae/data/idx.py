"""MNIST's IDX files: read, or downloaded by torchvision."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_vae.data.torchvision_sets import AGAIN, fetch, refuse_web_page, torchvision_datasets
from pyro_vae.errors import UserError, one_line

IdxArrays = tuple[
    NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.uint8] | None
]
"""`train`, `test`, and the labels of either, if there are any."""


def read_idx_set(name: str, folder: str, root: Path, download: bool) -> IdxArrays:
    """A set in MNIST's four IDX files, read in place, packed or not; torchvision downloads them if
    they are absent.
    """
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in kinds]

    def downloaded() -> list[Path | None]:
        getattr(torchvision_datasets(), folder)(str(root), download=download)
        found = [_idx_file(root, folder, stem) for stem in stems]
        if None in found[::2]:
            raise FileNotFoundError("no IDX files were found in it")
        return found

    files = [_idx_file(root, folder, stem) for stem in stems]
    if None in files[::2]:
        packed = [f"{stem}.gz" for stem in stems]
        files = fetch(name, packed, root / folder / "raw", download, downloaded)
    train, train_labels, test, test_labels = (file and _read_idx(file) for file in files)
    assert train is not None and test is not None
    return train, test, train_labels, test_labels


def _idx_file(root: Path, folder: str, stem: str) -> Path | None:
    """The file as torchvision lays it out, or without `raw`; `root` may also be the set's own
    folder.
    """
    homes = [root / folder / "raw", root / folder]
    if root.name == folder:
        homes += [root / "raw", root]
    candidates = (home / file for home in homes for file in (stem, f"{stem}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file: two zeros, the type (8: bytes), the number of axes, their
    sizes, the data.

    Format: http://yann.lecun.com/exdb/mnist (four-byte sizes, most significant byte first).
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable gzip file ({one_line(error)}); {AGAIN}") from error
    refuse_web_page(path, content, "an IDX file of bytes")
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 3:
        raise UserError(f"{path}: expected an IDX file of bytes, found something else; {AGAIN}")
    header = 4 + 4 * content[3]
    shape = tuple(
        int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)
    )
    if len(content) != header + math.prod(shape):
        found = len(content) - header
        raise UserError(
            f"{path}: truncated or damaged, {math.prod(shape)} bytes expected and {found} found; "
            f"{AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
