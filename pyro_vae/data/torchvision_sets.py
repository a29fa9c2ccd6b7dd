"""Data sets that torchvision downloads: its import, and the error if the files are absent."""

import http.client
import tempfile
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from pyro_vae.errors import UserError, one_line


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


def absent(
    name: str, files: list[str], download: bool, folder: Path, error: Exception | None
) -> UserError:
    """The sentence for a named set whose files are neither there nor to be had."""
    why = f"the download failed: {one_line(error)}" if download and error else "downloads are off"
    return UserError(
        f"{name}: not found in {folder}, and {why}; put {', '.join(files)} there, "
        "or name the folder that has them with --data-root or $PYRO_VAE_DATA"
    )


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
        fetch = download or home != root
        try:
            parts = [
                datasets.CIFAR10(str(home), train=train, download=fetch) for train in (True, False)
            ]
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise absent("cifar10", [archive.name], download, root, error) from error
    train, test = parts
    return train.data, test.data, train.targets, test.targets
