"""Larochelle's fixed binarization of MNIST: three text files of zeros and ones, placed by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_vae.data.torchvision_sets import AGAIN, refuse_web_page
from pyro_vae.errors import UserError

SIDE = 28

SHA256 = {
    "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
"""Of the files at www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist, as TensorFlow
Datasets records them.
"""

FOLDERS = ("static-mnist", "BinaryMNIST")
"""Where they are looked for in the data folder: under the set's name, and where the IWAE code has
them.
"""


def read_static_mnist(root: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The arrays `train` (train, then valid) and `test`, (N, 28, 28), zeros and ones.

    Raises:
        UserError: a file is absent, or not the published one; the line names it.
    """
    homes = [*(root / folder for folder in FOLDERS), root]
    files = {
        name: next((home / name for home in homes if (home / name).is_file()), None)
        for name in SHA256
    }
    if missing := [name for name, path in files.items() if path is None]:
        raise UserError(
            f"static-mnist: {', '.join(missing)} not found in {homes[0]}, and nothing is "
            "downloaded; put them there (from "
            "www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist), or name the folder "
            f"that has them with --data-root or $PYRO_VAE_DATA; the SHA-256 of {missing[0]} is "
            f"{SHA256[missing[0]]}"
        )
    train, valid, test = (
        _read(path, SHA256[name]) for name, path in files.items() if path is not None
    )
    return np.concatenate((train, valid)), test


def _read(path: Path, expected: str) -> NDArray[np.uint8]:
    """A line of 784 digits an image, with a blank between two."""
    content = path.read_bytes()
    refuse_web_page(path, content, "lines of zeros and ones")
    symbols = np.frombuffer(content, np.uint8)
    digits = symbols[(symbols == ord("0")) | (symbols == ord("1"))]
    if len(digits) % SIDE**2 or not len(digits):
        raise UserError(
            f"{path}: truncated or damaged, {len(digits)} digits are not a whole number of "
            f"images of {SIDE}x{SIDE}; {AGAIN}"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{path}: not the published file (SHA-256 {found}, expected {expected}); {AGAIN}"
        )
    return (digits - ord("0")).reshape(-1, SIDE, SIDE)
