"""OMNIGLOT in its two forms: the 28×28 file of the IWAE paper, placed by hand, or torchvision's
drawings.
"""

from __future__ import annotations

import hashlib
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.data.torchvision_sets import AGAIN, fetch, refuse_web_page, torchvision_datasets
from pyro_vae.errors import UserError, one_line

SIDE = 28

BURDA_FILE = "chardata.mat"
BURDA_BLOB = "016a3536ffe5e1d38e42563a18d7a78bfaf643ec"
"""The git object name of datasets/OMNIGLOT/chardata.mat in github.com/yburda/iwae: SHA-1 of a
header and the file.
"""

ARRAYS = {"data": "target", "testdata": "testtarget"}
"""In the file: pixels (784, N) in [0, 1], column-major, and one-hot alphabets (50, N); training,
then test images.
"""


def find_burda(root: Path) -> Path | None:
    """The IWAE paper's file, where the IWAE code has it, under the set's name, or in the folder
    itself.
    """
    homes = (root / "OMNIGLOT", root / "omniglot", root)
    return next((home / BURDA_FILE for home in homes if (home / BURDA_FILE).is_file()), None)


def read_burda(
    path: Path,
) -> tuple[tuple[NDArray[np.float32], ...], tuple[NDArray[np.int64], ...], bool]:
    """The images (N, 28, 28) and the alphabets (N,) of train and test, and whether it is the
    published file.

    Raises:
        UserError: not such a MATLAB file; the line names it.
    """
    from scipy.io import loadmat

    content = path.read_bytes()
    refuse_web_page(path, content, "a MATLAB file")
    try:
        held = loadmat(path, variable_names=[*ARRAYS, *ARRAYS.values()])
    except Exception as error:  # a damaged file fails in zlib, struct, numpy or scipy
        raise UserError(
            f"{path}: truncated or damaged, no readable MATLAB file ({one_line(error)}); {AGAIN}"
        ) from error
    images, alphabets = [], []
    for name, target in ARRAYS.items():
        pixels, of = held.get(name), held.get(target)
        if not _is_matrix(pixels, SIDE**2) or not _is_matrix(of) or pixels.shape[1] != of.shape[1]:
            shapes = f"{getattr(pixels, 'shape', None)} and {getattr(of, 'shape', None)}"
            raise UserError(
                f"{path}: arrays {name!r} (784, N) and {target!r} (classes, N) expected, found "
                f"{shapes}; {AGAIN}"
            )
        images.append(pixels.T.reshape(-1, SIDE, SIDE).swapaxes(1, 2).astype(np.float32))
        alphabets.append(of.argmax(0).astype(np.int64))
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return tuple(images), tuple(alphabets), digest == BURDA_BLOB


def _is_matrix(array: Any, rows: int | None = None) -> bool:
    return (
        isinstance(array, np.ndarray)
        and array.ndim == 2
        and 0 not in array.shape
        and rows in (None, array.shape[0])
    )


def read_drawings(root: Path, download: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The drawings of the background and of the evaluation alphabets, (N, 28, 28), strokes white,
    in order of their names.

    They are 105×105, black on white, in two archives that torchvision downloads; each pixel here is
    the mean of its share of them (Pillow's box filter).

    Raises:
        UserError: an archive is absent and not to be had, or damaged; the line names it.
    """
    datasets = torchvision_datasets()
    home = root / datasets.Omniglot.folder
    archives = [home / f"{name}.zip" for name in datasets.Omniglot.zips_md5]
    files = [
        f"{BURDA_FILE} (28x28, of the IWAE paper), or "
        f"{' and '.join(path.name for path in archives)}"
    ]
    for background, path in zip((True, False), archives, strict=True):
        if not path.is_file():
            get = partial(datasets.Omniglot, str(root), background, download=download)
            fetch("omniglot", files, home, download, get)
    train, test = (
        _unpack(path, md5)
        for path, md5 in zip(archives, datasets.Omniglot.zips_md5.values(), strict=True)
    )
    return train, test


def _unpack(path: Path, md5: str) -> NDArray[np.uint8]:
    """The drawings in an archive, (N, 28, 28); the files' own order depends on the file system."""
    from PIL import Image

    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path}: damaged (not the published MD5); delete it and download it again")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        drawings = [
            Image.open(archive.open(name)).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            for name in names
        ]
    return 255 - np.stack([np.asarray(each, np.uint8) for each in drawings])
