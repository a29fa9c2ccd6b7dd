"""Formatting of numbers and names, and the base classes of results that print themselves."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import is_dataclass
from math import nan
from typing import Any, ClassVar

from torch import Tensor


def quantity(protocol: Mapping[str, Any]) -> str:
    """What the number is: ``log p(x)``, ``log p(x | y)``, …
    (`pyro_vae.evaluation.protocol.Quantity`).

    Results of before tell only what fields the model's signature names, as ``given``.
    """
    before = f"log p(x | {protocol['given']})" if protocol.get("given") else "log p(x)"
    return str(protocol.get("quantity", before))


def protocol_line(protocol: Mapping[str, Any], *hidden: str) -> str:
    """The protocol in a line, less what the headline says; digests of x itself are shown once, as
    its sha256.
    """
    parts = []
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            own = protocol.get("sha256")
            value = ", ".join(
                f"{name} {shorten(each)}" for name, each in value.items() if each != own
            )
        if key not in ("quantity", "factors", *hidden) and value != "":
            parts.append(f"{key} {shorten(value)}")
    return "  protocol: " + "; ".join(parts)


def figure(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def share(value: float) -> str:
    return f"{value:.1%}" if value == value else "unknown (too few draws)"


def shorten(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text


def standard_error(values: Tensor) -> float:
    """sd / √N of the values ``(N,)``; NaN for one of them."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else nan


class Printed:
    """What ``print`` shows is also its ``repr``, and what a notebook shows; of dataclasses too,
    which would write a ``repr`` of their own.
    """

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.__repr__ = cls.__str__  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class Result(Printed):
    """Figures that print as lines, below them what changes how they are to be read."""

    figures: ClassVar[tuple[str, ...]] = ()
    """The attributes that `to_dict` gives; where none are named, the object's own."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the figures are to be read."""
        return ()

    def lines(self) -> list[str]:
        """The printed lines, without the warnings."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(f"  warning: {text}" for text in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names, as plain values: what ``--json`` prints."""
        return {name: _plain(getattr(self, name)) for name in self.figures or vars(self)}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Tensor):
        return value.tolist()
    if is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
