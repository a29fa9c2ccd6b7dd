"""The papers' data sets that are no named set of the package: loaders, chosen as
`benchmarks.reproduce.data_sets:NAME`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_vae.data import datasets
from pyro_vae.data.datasets import Source
from pyro_vae.data.image_data import ImageData, own_split, random_split
from pyro_vae.data.local_files import read_numpy
from pyro_vae.errors import UserError

COLOUR_SEED = 0


def frey_faces(source: Source) -> ImageData:
    """1965 frames of a film, 28x20, 8 bits: frey_faces.npz in the data root; neighbours are alike,
    so split at random.
    """
    path = source.root / "frey_faces.npz"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; put the Frey faces there as the array `images`, (1965, 28, "
            "20), uint8, or name its folder with --data-root"
        )
    return random_split(
        "frey-faces", read_numpy(path)["images"], seed=source.seed, test_fraction=0.1
    )


def mnist_1000(source: Source) -> ImageData:
    """The first 1000 training images of MNIST, with all 10000 test images (AEVB, figure 3)."""
    return _first(1000, source)


def mnist_50000(source: Source) -> ImageData:
    """The first 50000 training images of MNIST, with all 10000 test images (AEVB, figure 3)."""
    return _first(50_000, source)


def _first(number: int, source: Source) -> ImageData:
    whole = datasets.mnist(source)
    train = whole.train[:number]
    return replace(
        whole,
        name=f"mnist-{number}",
        train=train,
        train_labels=None if whole.train_labels is None else whole.train_labels[:number],
        split=f"{whole.split}, the first {number} training images",
        sha256=datasets.sha256(train, whole.test),
    )


def coloured_mnist(source: Source) -> ImageData:
    """MNIST in colour, 3x32x32, 8 bits: each digit in one random colour on another; made up, from a
    fixed seed.
    """
    whole = datasets.mnist(source)
    generator = torch.Generator().manual_seed(COLOUR_SEED)
    train, test = (_coloured(images, generator).numpy() for images in (whole.train, whole.test))
    labels = [
        None if part is None else part.numpy() for part in (whole.train_labels, whole.test_labels)
    ]
    return replace(
        own_split("coloured-mnist", train, test, *labels, levels=256),
        split=f"{whole.split}; colours made up, seed {COLOUR_SEED}",
    )


def _coloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """``(N, 1, 28, 28)`` uint8 to ``(N, 3, 32, 32)``: from the colour of the paper to that of the
    ink by the grey level.
    """
    number = len(images)
    ink, paper = (torch.rand(number, 3, 1, 1, generator=generator) for _ in range(2))
    ink, paper = 0.5 + ink / 2, paper / 2  # light on dark, so that the digit can always be seen
    out = torch.empty(number, 3, 32, 32, dtype=torch.uint8)
    for rows in torch.arange(number).split(5000):
        grey = torch.nn.functional.pad(images[rows].float() / 255, (2, 2, 2, 2))
        out[rows] = (255 * (paper[rows] + (ink[rows] - paper[rows]) * grey)).round().to(torch.uint8)
    return out
