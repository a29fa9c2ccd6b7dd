"""MNIST's IDX files: read, or downloaded by torchvision."""

import gzip
import http.client
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_vae.data.torchvision_sets import absent, torchvision_datasets
from pyro_vae.errors import UserError, one_line

IdxArrays = tuple[
    NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.uint8] | None
]
"""`train`, `test`, and the labels of either, if there are any."""


def read_idx_set(name: str, folder: str, root: Path, download: bool) -> IdxArrays:
    """A set in MNIST's four IDX files, read in place, packed or not; torchvision downloads them if
    they are absent.
    """
    raw = root / folder / "raw"
    stems = [
        f"{part}-{kind}"
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    files = {stem: _idx_file(root, folder, stem) for stem in stems}
    if files[stems[0]] is None or files[stems[2]] is None:
        packed = [f"{stem}.gz" for stem in stems]
        if not download:
            raise absent(name, packed, download, raw, None)
        dataset = getattr(torchvision_datasets(), folder)
        try:
            dataset(str(root), download=True)
        except (OSError, RuntimeError, AssertionError, http.client.HTTPException) as error:
            raise absent(name, packed, download, raw, error) from error
        files = {stem: _idx_file(root, folder, stem) for stem in stems}
    arrays = [None if file is None else _read_idx(file) for file in files.values()]
    train, train_labels, test, test_labels = arrays
    if train is None or test is None:
        raise absent(
            name,
            [f"{stem}.gz" for stem in stems],
            download,
            raw,
            FileNotFoundError("no IDX files were found in it"),
        )
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
    again = "delete it and get it again"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable gzip file ({one_line(error)}); {again}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 3:
        what = "a web page" if content.lstrip()[:1] == b"<" else "something else"
        raise UserError(f"{path}: expected an IDX file of bytes, found {what}; {again}")
    header = 4 + 4 * content[3]
    shape = tuple(
        int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)
    )
    if len(content) != header + math.prod(shape):
        found = len(content) - header
        raise UserError(
            f"{path}: truncated or damaged, {math.prod(shape)} bytes expected and {found} found; "
            f"{again}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
