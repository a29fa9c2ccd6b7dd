"""Missing pixels, drawn given those that are seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.chains import Restored
from pyro_vae.analysis.gibbs import restore
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.tensors import as_images, as_mask, as_tensor


@takes_fields
def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    missing: Any = None,
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
            mask for all images); by default where x is NaN, or the field ``mask`` is False.
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

    def redraw(unseen: Tensor, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        return torch.where(unseen, draw(), x)

    chains = num_samples, num_steps, method, seed, device
    return restore(model, guide, unseen, start, redraw, fields, *chains)


def _pixels(x: Any, missing: Any) -> tuple[Tensor, Tensor]:
    """The images, zeros where a pixel is missing, and where that is."""
    images = as_tensor(x, "x")
    mask = images.isnan() if missing is None else as_mask(missing, images, "missing")
    return as_images(images.masked_fill(mask, 0)).cpu(), mask.cpu()
