"""Observations: from a stored image to the x that a model sees."""

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """A map from stored images to what the model observes of them, (B, *event) → (B, *event)
    float32.

    Attributes:
        levels: number of the stored integer levels, or None for floats.
        fresh: whether a new draw is due at each visit of an image.
        protocol: the observation in words.
        bits_offset: bits per dimension = −log p(x) / (D log 2) + bits_offset, the length of a
            lossless code of the stored levels (or a bound on it); None where log p(x) gives no such
            code.
    """

    levels: int | None

    fresh: ClassVar[bool] = False
    words: ClassVar[str]

    @property
    def protocol(self) -> str:
        return self.words.format(levels=self.levels, top=(self.levels or 0) - 1)

    @property
    def bits_offset(self) -> float | None:
        return None

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observe a batch on its own device; noise comes from `generator`, else from torch's global
        one. Where a class says nothing else: the stored number as a float.
        """
        return batch.to(torch.float32)

    def expected(self, batch: Tensor) -> Tensor:
        """The mean of what is observed of each image, float32: itself where nothing is drawn."""
        return self(batch)

    def fixed(self, images: Tensor, seed: int, part: str) -> Tensor:
        """Observe a whole set once, on the CPU; float32.

        The noise depends on the seed, on the part's name and on an image's position alone: not on
        the device, on batches, or on the images that follow; the global generator is neither read
        nor moved.
        """
        return self(images.cpu(), _generator(seed, part))


def _generator(seed: int, part: str) -> torch.Generator:
    """Its own stream for each part ("train", "validation", "test"): seeded by SHA-256 of "seed
    part", 32 bits.
    """
    digest = hashlib.sha256(f"{seed} {part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform draws in [0, 1), float32. `rand_like` has no generator argument, and is what
    compilers fuse.
    """
    if generator is None:
        return torch.rand_like(like, dtype=torch.float32)
    return torch.rand(like.shape, generator=generator, device=like.device)


def grey(batch: Tensor, levels: int | None) -> Tensor:
    """Stored level / (levels − 1), in [0, 1]; floats as they are."""
    values = batch.to(torch.float32)
    return values if levels is None else values / (levels - 1)


def _of(binary: Tensor, batch: Tensor) -> Tensor:
    """The pixels as float32; NaN, which floats alone may have, where the batch has it."""
    pixels = binary.to(torch.float32)
    return pixels.masked_fill(batch.isnan(), torch.nan) if batch.is_floating_point() else pixels


@dataclass(frozen=True)
class Dynamic(Observation):
    """x ~ Bernoulli(grey level), drawn again at each visit (Salakhutdinov & Murray 2008); floats
    are the probability.
    """

    fresh: ClassVar[bool] = True
    words: ClassVar[str] = "dynamic binarization"

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _of(_uniform(batch, generator) < grey(batch, self.levels), batch)

    def expected(self, batch: Tensor) -> Tensor:
        return grey(batch, self.levels)


@dataclass(frozen=True)
class Threshold(Observation):
    """x = 1 where the grey level is above 1/2, else 0."""

    words: ClassVar[str] = "binarized at the threshold 1/2"

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _of(grey(batch, self.levels) > 0.5, batch)


@dataclass(frozen=True)
class Grey(Observation):
    """x = grey level in [0, 1], or the stored float."""

    @property
    def protocol(self) -> str:
        return (
            "values as stored"
            if self.levels is None
            else f"{self.levels} grey levels scaled to [0, 1]"
        )

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return grey(batch, self.levels)


@dataclass(frozen=True)
class Levels(Observation):
    """x = the stored integer level as a float, for likelihoods that are masses over the levels."""

    words: ClassVar[str] = "integer levels 0 to {top}"

    @property
    def bits_offset(self) -> float | None:
        return 0.0


@dataclass(frozen=True)
class Counts(Observation):
    """x = the stored whole number as a float, for likelihoods that have no largest value."""

    words: ClassVar[str] = "whole numbers as stored"


@dataclass(frozen=True)
class Dequantize(Observation):
    """x = (level + u) / levels, u ~ U(0, 1), in (0, 1): a density of x bounds a mass of the levels.

    Theis, van den Oord & Bethge 2016, section 3.1: E_u log p(x) − D log(levels) ≤ log P(level),
    with D dimensions.
    """

    levels: int

    fresh: ClassVar[bool] = True

    MARGIN: ClassVar[float] = 2.0**-14
    """u stays this far from 0 and 1, or float32 would round some images into the next level (255 +
    u to 256).
    """

    words: ClassVar[str] = "uniform dequantization, {levels} levels"

    @property
    def bits_offset(self) -> float | None:
        return math.log2(self.levels)

    def place(self, batch: Tensor, uniform: Tensor) -> Tensor:
        """(level + u) / levels for given u in [0, 1], such that floor(x · levels) is the level,
        exactly.
        """
        return (batch.to(torch.float32) + uniform.clamp(self.MARGIN, 1 - self.MARGIN)) / self.levels

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.place(batch, _uniform(batch, generator))

    def expected(self, batch: Tensor) -> Tensor:
        return (batch.to(torch.float32) + 0.5) / self.levels
