"""The same model, trained and evaluated as the users of each library would write it at its best.

Every module has ``step(at, x)``, a training step on one batch that returns its loss summed over the
batch; where the suite calls for them ``epochs(at, images)``, which returns a function of the number
of epochs; and an estimator of log p(x).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

Step = Callable[[], Any]


@dataclass(frozen=True)
class Epochs:
    """Passes over the training set: the seconds of each, and the mean loss of an image in the last."""

    seconds: list[float]
    loss: float


Train = Callable[[int], Epochs]


LIBRARIES = {"numpyro": "numpyro_svi", "pythae": "pythae_vae"}


def others(names: Mapping[str, str], method: str, *arguments: Any) -> dict[str, Callable[[], Any]]:
    """Makers of the contestants by other libraries, those that are installed: ``names`` by library,
    as the suite calls them.

    Each is imported where it is made, as its threads are not to run beside the others'.
    """

    def make(library: str) -> Any:
        return getattr(import_module(f"benchmarks.contestants.{LIBRARIES[library]}"), method)(
            *arguments
        )

    return {name: partial(make, library) for library, name in names.items() if find_spec(library)}


def timed(epoch: Callable[[], Any], num_images: int) -> Train:
    """A training from an ``epoch`` that returns its summed loss."""

    def train(num_epochs: int) -> Epochs:
        seconds, loss = [], 0.0
        for _ in range(num_epochs):
            started = time.perf_counter()
            loss = float(epoch())
            seconds.append(time.perf_counter() - started)
        return Epochs(seconds, loss / num_images)

    return train
