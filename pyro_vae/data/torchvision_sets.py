"""Data sets that torchvision downloads: its import, and the error if the files are absent."""

import http.client
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
