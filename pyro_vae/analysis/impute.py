"""Missing pixels, drawn given those that are seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.analysis.chains import Redraw, Restored
from pyro_vae.analysis.gibbs import restore
from pyro_vae.errors import UserError
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.tensors import as_images


@takes_fields
def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    missing: Any,
    num_samples: int = 16,
    num_steps: int = 200,
    method: str = "metropolis",
    seed: int = 0,
    device: str | torch.device = "auto",
    **fields: Any,
) -> Restored:
    """Draw x_mis ~ p(x_mis | x_obs), K = ``num_samples`` chains an image (Mattei & Frellsen 2018).

    Each step proposes z' ~ q(z | x), x being complete with the present x_mis, then a shift of z by
    the difference of two more such draws, tests each against the model, and draws x_mis ~ p(x_mis |
    z). With the test (``metropolis``) the chains' law is p(x_mis
    | x_obs) itself in the limit of many steps, for every guide; without it (``gibbs``: Rezende et
    al. 2014) only if the guide is the model's posterior. Missing pixels start at a draw of p(x).

    Example::

        missing = torch.rand_like(x) < 0.5
        found = pv.impute(model, guide, x, missing, num_steps=20)
        found.mean, found.sd, found.se  # E[x | seen pixels], each (N, *event_shape)

    Args:
        x: images ``(N, *event_shape)``; what missing pixels hold is not looked at, and may be NaN.
        missing: True where a pixel is missing, bool, of x's shape or one that broadcasts to it (one
            mask for all images).
        num_steps: of a chain; averages leave out the first half.
        method: ``metropolis`` or ``gibbs``.
        **fields: what the programs take beside x, N rows.

    Raises:
        UserError: a mask of another type or shape; a pair for which there is no such chain
            (`restore` lists the reasons).
    """
    seen, unseen = _pixels(x, missing)

    def start(drawn: Callable[[int], Tensor]) -> Tensor:
        images = drawn(0)
        return torch.where(unseen, images, seen.to(images))

    def redraw(rows: slice, like: Tensor) -> Redraw:
        own = unseen[rows].to(like.device)
        own = own.repeat(len(like) // len(own), *(1 for _ in seen.shape[1:]))
        return lambda x, draw: torch.where(own, draw(), x)

    return restore(
        model,
        guide,
        seen.shape,
        start,
        redraw,
        fields,
        num_samples,
        num_steps,
        method,
        seed,
        device,
    )


def _pixels(x: Any, missing: Any) -> tuple[Tensor, Tensor]:
    """The images, zeros where a pixel is missing, and the mask in their shape."""
    images = torch.from_numpy(x) if isinstance(x, np.ndarray) and x.dtype.kind in "biuf" else x
    mask = torch.as_tensor(missing)
    if mask.dtype != torch.bool:
        raise UserError(f"missing holds {mask.dtype}: expected bool, True where a pixel is missing")
    if not isinstance(images, Tensor):
        as_images(images)
        raise UserError("x: impute takes the images as one tensor or array (N, *event_shape)")
    try:
        mask = mask.to(images.device).broadcast_to(images.shape)
    except RuntimeError:
        raise UserError(
            f"missing has shape {tuple(mask.shape)}: expected that of x, {tuple(images.shape)}, "
            "or one that broadcasts to it"
        ) from None
    seen = torch.where(mask, torch.zeros((), dtype=images.dtype), images)
    return as_images(seen).cpu(), mask.cpu()
