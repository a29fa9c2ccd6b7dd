"""Data sets that torchvision downloads: its import, and the error if the files are absent."""

import gzip
import http.client
import math
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vae.errors import UserError, one_line

Result = TypeVar("Result")


def torchvision_datasets() -> Any:
    """`torchvision.datasets`, or a sentence on why it does not import."""
    try:
        from torchvision import datasets
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: operator torchvision::nms does not exist
        raise UserError(
            f"torchvision does not match torch {torch.__version__} ({one_line(error)}); "
            "install a matching pair: pip install torch torchvision"
        ) from error
    return datasets


def fetch(
    name: str, files: list[str], folder: Path, download: bool, get: Callable[[], Result]
) -> Result:
    """What ``get`` gives, which may download.

    Raises:
        UserError: the set's files are neither there nor to be had.
    """
    why, cause = "downloads are off", None
    try:
        return get()
    except (OSError, RuntimeError, AssertionError, http.client.HTTPException) as error:
        if download:
            why, cause = f"the download failed: {one_line(error)}", error
    raise UserError(
        f"{name}: not found in {folder}, and {why}; put {', '.join(files)} there, "
        "or name the folder that has them with --data-root or $PYRO_VAE_DATA"
    ) from cause


def refuse_web_page(path: Path, content: bytes, expected: str) -> None:
    """A ``UserError`` where a browser saved a page in the place of a file."""
    if content.lstrip()[:1] == b"<":
        raise UserError(f"{path}: expected {expected}, found a web page; {AGAIN}")


AGAIN = "delete it and get it again"


def read_cifar10(
    root: Path, download: bool
) -> tuple[NDArray[Any], NDArray[Any], list[int], list[int]]:
    """The arrays `train` and `test` and the labels of either, from the archive or from the unpacked
    folder in `root`.
    """
    datasets = torchvision_datasets()
    archive = root / datasets.CIFAR10.filename
    unpacked = root / datasets.CIFAR10.base_folder
    with tempfile.TemporaryDirectory() as scratch:
        home = root
        if archive.is_file() and not unpacked.is_dir():
            # Unpack next to a link, so that a read-only root serves; checked first, as a download
            # would overwrite it.
            if not datasets.utils.check_integrity(str(archive), datasets.CIFAR10.tgz_md5):
                raise UserError(
                    f"{archive}: damaged (not the published MD5); delete it and download it again"
                )
            home = Path(scratch)
            (home / archive.name).symlink_to(archive.resolve())
        whole = partial(datasets.CIFAR10, str(home), download=download or home != root)
        parts = fetch(
            "cifar10",
            [archive.name],
            root,
            download,
            lambda: [whole(train=train) for train in (True, False)],
        )
    train, test = parts
    return train.data, test.data, train.targets, test.targets


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
    train, train_labels, test, test_labels = (
        None if file is None else _read_idx(file) for file in files
    )
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
