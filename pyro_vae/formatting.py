"""Numbers and names in printed lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
