"""The context of a picture: a run's pair, data and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.encode import encode
from pyro_vae.pair.runtime import Pair
from pyro_vae.plots.images import DoesNotFit, value_range
from pyro_vae.tensors import one_of

SCATTER_IMAGES = 10_000


@dataclass(eq=False)
class Subject:
    """A pair, the images to show it with, and how it was trained."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor  # (N, *event_shape), the test set as the model observes it
    labels: Tensor | None = None  # (N,)
    name: str = ""  # the data set's
    history: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    device: str | torch.device = "auto"
    classes: tuple[str, ...] | None = None  # their names
    table: bool = False  # rows of a table, which no picture shows

    @property
    def one(self) -> str:
        """What one of the data is called."""
        return one_of(self.x)

    def class_name(self, label: int) -> str:
        """The class's name, or its number."""
        return self.classes[label] if self.classes else str(label)

    @property
    def options(self) -> dict[str, Any]:
        """What every run of the pair is given."""
        return {"seed": self.seed, "device": self.device}

    @cached_property
    def conditional(self) -> bool:
        """Whether a program asks for the labels, by the name ``y``."""
        pair = Pair.of(self.model, self.guide)
        return self.labels is not None and (pair.model.wants("y") or pair.guide.wants("y"))

    def fields(self, rows: slice) -> dict[str, Any]:
        """What the programs take besides these images."""
        return {"y": self.labels[rows]} if self.conditional and self.labels is not None else {}

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image."""
        return self.x.shape[1:]

    @cached_property
    def sites(self) -> dict[str, Tensor]:
        """The mean of q(z | x) at each latent site, for the first 10 000 test images."""
        rows = slice(SCATTER_IMAGES)
        return encode(self.model, self.guide, self.x[rows], **self.options, **self.fields(rows))

    @cached_property
    def means(self) -> Tensor:
        """All latent sites side by side, ``(n, D)``.

        Raises:
            DoesNotFit: the guide samples nothing.
        """
        if not self.sites:
            raise DoesNotFit("the guide samples no latent, so there is no q(z | x) to show")
        return torch.cat(
            [value.reshape(len(value), -1).float() for value in self.sites.values()], dim=1
        )

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """Rows laid out as `means` are, ``(n, D)``, as values by site, ``(n, *event)``."""
        widths = [value[0].numel() for value in self.sites.values()]
        parts = z.split(widths, dim=1)
        return {
            n: part.reshape(len(z), *v.shape[1:])
            for (n, v), part in zip(self.sites.items(), parts, strict=True)
        }

    @cached_property
    def values(self) -> tuple[float, float]:
        """What is shown as black and as white."""
        return value_range(self.x)
