"""Parts that start from the training data: a mixture's components at clusters of the images, say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.batches import Source
from pyro_vae.pair import Pair

MOST_IMAGES = 20_000
"""Enough to find clusters in, of a set of any size."""


def start_from_data(pair: Pair, source: Source, observe: Callable[[Tensor], Tensor] | None, seed: int) -> None:
    """Call ``start_from(x)`` of every module that ``waits_for_data``, on training images as the model will see them."""
    waiting = [module for module in pair.modules if getattr(module, "waits_for_data", False)]
    if not waiting:
        return
    parts: list[Tensor] = []
    for x, _ in source.shuffled(seed, 1):
        parts.append(pair.cast(x if observe is None else observe(x)))
        if sum(map(len, parts)) >= MOST_IMAGES:
            break
    images = torch.cat(parts)
    for module in waiting:
        start: Any = module.start_from
        start(images)
