"""Data-dependent initialisation: a decoder's bias at the mean image, a mixture at k-means."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.loaders import Source
from pyro_vae.data.transforms import Observation
from pyro_vae.pair.runtime import Pair
from pyro_vae.protocols import DataStart

MOST_IMAGES = 20_000
"""Enough to find clusters in, of a set of any size."""


def start_from_data(pair: Pair, source: Source, observe: Observation | None, seed: int) -> None:
    """Start every module of the pair that waits for its data (`DataStart`), which then says that it
    waits no more; a resumed training does not.
    """
    data = TrainingImages(pair, source, observe, seed)
    for module in pair.modules:
        if isinstance(module, DataStart) and module.waits_for_data:
            module.start_from_data(data)


class TrainingImages:
    """The images that are trained on, and no validation images, as the model will see them; read
    when they are asked for.
    """

    def __init__(self, pair: Pair, source: Source, observe: Observation | None, seed: int) -> None:
        self._pair, self._source, self._observe, self._seed = pair, source, observe, seed

    @cached_property
    def sample(self) -> Tensor:
        """`MOST_IMAGES` of them or all, in a random order, as they are observed, with the mean in
        the place of a NaN: ``(N, *event_shape)``.
        """
        parts: list[Tensor] = []
        for x, _ in self._source.shuffled(self._seed, 1):
            parts.append(self._pair.cast(x if self._observe is None else self._observe(x)))
            if sum(map(len, parts)) >= MOST_IMAGES:
                break
        found = torch.cat(parts)
        seen = ~found.isnan()
        mean = torch.where(seen, found, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        return torch.where(seen, found, mean)

    def field(self, name: str) -> Tensor | None:
        """The named field of all of them, ``(N, …)``; None where it was not given."""
        parts = [fields[name] for _, fields in self._source.in_order() if name in fields]
        return torch.cat(parts) if parts else None

    @cached_property
    def mean(self) -> Tensor:
        """The mean of what is observed of all of them, ``event_shape``, float64 on the CPU; nothing
        is drawn.
        """
        total: Any = 0.0
        number: Any = 0
        for x, _ in self._source.in_order():
            expected = x if self._observe is None else self._observe.expected(x)
            seen = ~expected.isnan()
            total = total + torch.where(seen, expected, 0.0).cpu().double().sum(0)
            number = number + seen.sum(0).cpu()
        mean: Tensor = total / number.clamp(min=1)
        return mean
