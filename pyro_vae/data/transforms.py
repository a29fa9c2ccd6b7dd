"""Observation of stored images: binarized, dequantized, scaled, or as they are.

A log p(x) means nothing without the x it is of. `observe` decides by the likelihood, says it in
words, draws a test set once from a seed of its own, and leaves torch's global random numbers alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.data.image_data import ImageData, sha256
from pyro_vae.data.observations import (
    Counts,
    Dequantize,
    Dynamic,
    Grey,
    Levels,
    Observation,
    Threshold,
    grey,
)
from pyro_vae.errors import UserError, did_you_mean

MODES = ("auto", "dynamic", "static", "threshold", "none")
"""The choices of `--binarize`."""

OBSERVES = ("binary", "unit", "real", "levels", "counts")
"""What a likelihood is defined on: {0, 1}, [0, 1], the real line, the integers 0 … levels − 1, or
all whole numbers from 0.
"""


@dataclass(frozen=True, eq=False)
class Observed:
    """A data set as a model gets it.

    Attributes:
        x_train: what `fit` gets, ``(N, *event)``: stored images if `observe` is given, else
            float32.
        observe: what to apply to a batch of `x_train` at each visit (``fit(…, binarize=…)``); None
            if `x_train` is observed already.
        x_test: test images as observed, ``(N, *event)`` float32, on the CPU; drawn once.
        protocol: words for the results: data, split, observation, data_sha256 (the stored set),
            sha256 (`x_test`).
        levels: number of the stored levels, or None for floats.
        bits_offset: see `Observation`; for ``log_marginal(…, bits_offset=…)``.
        seed: of the draws that are made once.
    """

    x_train: Tensor
    observe: Observation | None
    x_test: Tensor
    protocol: dict[str, str]
    levels: int | None
    bits_offset: float | None
    seed: int

    def validation(self, rows: Tensor) -> Tensor:
        """Observe rows of `x_train` once, as the test set is observed.

        It is for scoring by hand. `fit` observes its `x_valid` itself, so give it the stored rows.

        Args:
            rows: row numbers, ``(M,)`` int64.

        Returns:
            ``(M, *event)`` float32.
        """
        return rows if self.observe is None else self.observe.fixed(rows, self.seed, "validation")


def observe(
    data: ImageData, mode: str = "auto", observes: str = "binary", seed: int = 0
) -> Observed:
    """Turn stored images into what a model observes: binarize, dequantize or scale them.

    Example::

        digits = pv.data.observe(pv.data.load("digits"))  # binary pixels
        digits.x_test.unique()  # 0 and 1

    Args:
        data: the stored images, an `ImageData`.
        mode: ``dynamic`` (training images get new binary pixels at each visit, test images once),
            ``static`` (both once), ``threshold`` (1 above one half), ``none``; or ``auto``, which
            decides by ``observes``: binary pixels are drawn dynamically, integer levels under a
            density are dequantized, and a mass over levels gets the levels. Data that fit already
            are unchanged.
        observes: which values the likelihood takes, its attribute of that name: ``binary``,
            ``unit``, ``real``, ``levels`` or ``counts``.
        seed: of all that is drawn once. Numbers are comparable if it is the same.

    Returns:
        An `Observed`: ``x_train``, ``x_test``, and what `fit` and `log_marginal` need to know.

    Raises:
        UserError: an unknown mode, or data that the likelihood can't observe in this mode; the
            sentence names the first such value.

    Reference:
        Salakhutdinov and Murray 2008 (dynamic binarization); Theis, van den Oord and Bethge 2016,
        "A Note on the Evaluation of Generative Models", section 3.1 (dequantization).
    """
    if mode not in MODES:
        raise UserError(did_you_mean("binarization", mode, MODES))
    if observes not in OBSERVES:
        raise ValueError(
            f"observes is {observes!r}; a likelihood's `observes` is one of {', '.join(OBSERVES)}"
        )
    observation = _choose(data, mode, observes)
    once = not observation.fresh or mode == "static"
    # levels are what a stored number is divided by, so they are part of what x is
    divided = data.levels is not None and not isinstance(observation, Counts)
    x_test = observation.fixed(data.test, seed, "test")
    return Observed(
        x_train=observation.fixed(data.train, seed, "train") if once else data.train,
        observe=None if once else observation,
        x_test=x_test,
        protocol={
            "data": data.name,
            "split": data.split,
            "observation": _words(observation, mode, observes, seed),
            **({"levels": str(data.levels)} if divided else {}),
            "data_sha256": data.sha256,
            "sha256": sha256(x_test),
        },
        levels=data.levels,
        bits_offset=observation.bits_offset,
        seed=seed,
    )


def _choose(data: ImageData, mode: str, observes: str) -> Observation:
    """The observation for a mode, once the data are known to permit it."""
    if mode == "auto" and observes == "binary" and _first_outside(data, binary=True) is not None:
        mode = "dynamic"
    if mode in ("dynamic", "static", "threshold"):
        _require(data, f"{mode} binarization", binary=False)
        return Threshold(data.levels) if mode == "threshold" else Dynamic(data.levels)
    if observes == "counts":
        if data.levels is None and (
            found := _first_place(data, lambda x: (x < 0) | (x != x.round()))
        ):
            place, value = found
            raise UserError(
                f"{data.name}, {place}: {value:g}, but this likelihood is for whole numbers "
                "from 0. Store counts, or choose a likelihood of real numbers, such as Gaussian"
            )
        return Counts(data.levels)
    if observes == "levels":
        if data.levels is None:
            raise UserError(
                f"{data.name}: the {data.one}s are floats, but this likelihood is for whole numbers "
                "(grey levels). Store them as uint8, or choose a likelihood of real "
                "numbers, such as Gaussian"
            )
        return Levels(data.levels)
    if observes == "binary":
        _require(data, "a binary likelihood", binary=True)
    if observes == "unit":
        _require(data, "a likelihood on [0, 1]", binary=False)
    if mode == "auto" and observes != "binary" and data.levels is not None:
        return Dequantize(data.levels)
    return Grey(data.levels)


def _words(observation: Observation, mode: str, observes: str, seed: int) -> str:
    """The observation for the protocol: what, who chose it, and what was drawn once from which
    seed.
    """
    words = "static binarization" if mode == "static" else observation.protocol
    if (
        isinstance(observation, Grey)
        and observation.levels is not None
        and observes in ("unit", "real")
    ):
        words += ", not dequantized (a density of discrete values has no upper bound)"
    if observation.fresh:
        words += f"; {'train and test' if mode == 'static' else 'test'} drawn once, seed {seed}"
    return f"{words} (auto)" if mode == "auto" else words


def _require(data: ImageData, what: str, binary: bool) -> None:
    """Refuse data with a value outside {0, 1} or [0, 1], and say what to do about it."""
    found = _first_outside(data, binary)
    if found is None:
        return
    place, value = found
    if binary and _first_outside(data, binary=False) is None:
        raise UserError(
            f"{data.name}, {place}: grey value {value:g}, where {what} needs 0 or 1; "
            "binarize the data (--binarize dynamic), or choose a likelihood of grey values"
        )
    place, value = _first_outside(data, binary=False) or found
    raise UserError(
        f"{data.name}, {place}: value {value:g}, where {what} needs values in [0, 1]; "
        "scale the data, or choose a likelihood of real values, such as Gaussian"
    )


def _first_outside(data: ImageData, binary: bool) -> tuple[str, float] | None:
    """The place and the value (on the scale [0, 1]) of the first entry outside {0, 1}, or outside
    [0, 1].
    """
    if not binary and data.levels is not None:
        return None
    top = 1 if data.levels is None else data.levels - 1
    found = _first_place(data, lambda x: (x != 0) & (x != top) if binary else (x < 0) | (x > 1))
    return found and (found[0], float(grey(torch.tensor(found[1]), data.levels)))


def _first_place(data: ImageData, is_wrong: Callable[[Tensor], Tensor]) -> tuple[str, float] | None:
    """The place and the stored value of the first entry that is wrong."""
    for part, stored in (("train", data.train), ("test", data.test)):
        wrong = is_wrong(stored) & ~stored.isnan()
        if wrong.any():
            position = int(wrong.flatten().to(torch.uint8).argmax())
            image = position // stored[0].numel()
            return f"{part} {data.one} {image}", stored.flatten()[position].item()
    return None


LEAST_OF_256 = 128
"""Whole numbers that are all below this are hardly 8-bit grey levels."""

COLOURS = (3, 4)


def doubts(data: ImageData, observed: Observed, observes: str, given: bool) -> str:
    """What speaks against the convention that was chosen, in one line with the remedy; or nothing.

    Args:
        observes: the likelihood's attribute.
        given: whether the caller said how many levels there are.
    """
    found = []
    largest = int(data.largest)
    if not given and observes != "counts" and few_levels(largest, data.levels):
        found.append(
            f"the largest whole number is {largest}, and the values are read as grey levels 0 "
            f"to 255. Give --levels {largest + 1} if they are levels, --likelihood Poisson if "
            "they are counts"
        )
    binarized = observes == "binary" and "binarization" in observed.protocol["observation"]
    if binarized and data.train.dim() == 4 and data.train.shape[1] in COLOURS:
        found.append(
            "each colour channel is binarized by itself: give --likelihood Gaussian or "
            "DiscretizedLogistic, or --binarize dynamic if it is meant"
        )
    return f"{data.name}: {'; '.join(found)}" if found else ""


def few_levels(largest: int, levels: int | None) -> bool:
    """Whether stored whole numbers that were taken for 8-bit levels hardly are."""
    return levels == 256 and largest < LEAST_OF_256
