"""Ancestral sampling: images simulated from the model with their latents, draws of p(z, x)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.analysis.generate import Generation
from pyro_vae.errors import UserError
from pyro_vae.pair.nodes import plain_draw


@dataclass(frozen=True)
class Simulated:
    """(x, z) ~ p(x, z), the images first."""

    x: Tensor  # (N, *event_shape), as the programs take it
    fields: dict[str, Tensor]  # (N, …), with ``index``
    latents: dict[str, Tensor]  # (N, *other plates, *event) by site


def simulate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    size: int,
    like: Tensor | None,
    device: str | torch.device,
    seed: int,
    fields: Mapping[str, Any],
) -> Simulated:
    """``size`` images of the model as it was fitted with ``guide``.

    Raises:
        UserError: the model takes no ``size`` and there is no ``like``; it observes anything but x
            alone.
    """
    made = Generation(model, guide, size, like, device, fields)
    pair, blank, named, at = made.pair, made.blanks(size), made.fields, made.at
    named.setdefault("index", torch.arange(size, device=made.place))
    if len(made.observed) != 1:
        raise UserError(
            f"the model observes {', '.join(made.observed)}: BDMC can only simulate images of a "
            "model that observes nothing but x"
        )
    (name,) = made.observed
    with pair.measuring(made.place, seed):
        trace = plain_draw(made.generate, blank, named)
        drawn = trace.nodes[name]["value"]
        if drawn.numel() == blank.numel():
            # where x is along other plates, its images come first; that this is so is checked
            # next
            x = pair.cast(at.rows(trace.nodes[name]).reshape(blank.shape))
            again = plain_draw(poutine.replay(pair.model, trace=trace), x, named)
            if torch.equal(again.nodes[name]["value"], drawn):
                return Simulated(x, named, {n: at.rows(trace.nodes[n]) for n in made.latents})
    raise UserError(
        f"the model's site {name!r} observes a function of x, not x itself (its values have "
        f"shape {tuple(drawn.shape)}, images {tuple(blank.shape)}): BDMC can't make images from "
        "its draws there"
    )
