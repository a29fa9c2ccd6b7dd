"""The base class of results: figures of each image, and the protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae.files import write_atomically
from pyro_vae.formatting import (
    Result,
    figure,
    protocol_line,
)

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]


def over_images(
    figures: str,
    doc: str = "Its standard error, the images as a sample; Monte Carlo error included.",
    number: Callable[[Tensor], Any] = torch.mean,
) -> Any:
    """A property: one number, in nats, of a result's figures of each image ``(N,)``."""
    return property(lambda result: float(number(getattr(result, figures))), doc=doc)


def difference(upper: str, lower: str, doc: str) -> Any:
    """A property: of each image one of its figures less another, ``(N,)``."""
    return property(lambda result: getattr(result, upper) - getattr(result, lower), doc=doc)


@dataclass(frozen=True, eq=False, kw_only=True)
class Estimate(Result):
    """Figures of each of N images, in nats, with the protocol behind them."""

    columns: ClassVar[tuple[str, ...]] = ()  # the figures of each image, (N,)
    hidden: ClassVar[tuple[str, ...]] = ("estimator", "num_samples", "num_images", "num_dims")
    """What the printed protocol does not have, as the headline has it."""

    protocol: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        """N."""
        return len(getattr(self, self.columns[0]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the number is to be read."""
        return self.notes

    def headline(self) -> list[str]:
        """The number with its errors, a line or more."""
        raise NotImplementedError

    def lines(self) -> list[str]:
        """The headline and the protocol."""
        return [*self.headline(), protocol_line(self.protocol, *self.hidden)]

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names, of those of each image the mean: what
        ``--json`` prints.
        """
        found = {name: getattr(self, name) for name in self.figures}
        means = {n: float(each.mean()) for n, each in found.items() if isinstance(each, Tensor)}
        return {**super().to_dict(), **means}

    def summary(self) -> str:
        """The printed lines, and quantiles of the figures of each image."""
        return "\n".join([str(self), *(self._by_image(name, name, 2) for name in self.columns)])

    def per_image(self) -> pandas.DataFrame:
        """One row an image, with its figures in nats."""
        import pandas

        figures = {name: getattr(self, name).double().cpu().numpy() for name in self.columns}
        return pandas.DataFrame({"image": range(self.num_images), **figures})

    def to_csv(self, path: str | Path) -> Path:
        """Write `per_image` as CSV, all digits; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.per_image().to_csv(index=False).encode())
        return path

    def _by_image(self, words: str, name: str, digits: int) -> str:
        """Quantiles in a line: observed values, as k̂ may be −inf, between which nothing can be
        interpolated.
        """
        values = getattr(self, name)
        known = values[~values.isnan()].double().cpu().numpy()
        if not len(known):
            return f"  {words} by image: unknown (too few draws)"
        at = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}
        found = np.quantile(known, list(at.values()), method="nearest")
        named = [f"{q} {figure(float(each), digits)}" for q, each in zip(at, found, strict=True)]
        unknown = f"  ({len(values) - len(known)} unknown)" if len(known) < len(values) else ""
        return f"  {words} by image: {'  '.join(named)}{unknown}"
