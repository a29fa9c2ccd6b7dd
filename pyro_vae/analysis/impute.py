"""Imputation: draws of missing pixels given the observed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.chains import Redraw, Restored
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
    """Draw missing pixels given the observed ones: x_mis ~ p(x_mis | x_obs), by
    Metropolis-within-Gibbs.

    K = ``num_samples`` chains run at each image. A step proposes z' ~ q(z | x) with x completed by
    the present x_mis, then a shift of z by the difference of two more such draws; it accepts or
    rejects each, and then draws x_mis ~ p(x_mis | z). With this test (``metropolis``) the chains
    converge to p(x_mis | x_obs) for every guide. Without it (``gibbs``) they do so only if the
    guide is the model's posterior. Missing pixels start at a draw of p(x).

    Example::

        missing = torch.rand_like(x) < 0.5
        found = pv.impute(model, guide, x, missing, num_steps=20)
        found.mean, found.sd, found.se  # E[x | seen pixels], each (N, *event_shape)

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``. Values of missing pixels are not read, and may be NaN.
        missing: bool, True where a pixel is missing, of x's shape or one that broadcasts to it; by
            default where x is NaN, or where the field ``mask`` is False.
        num_samples: K, chains for each image.
        num_steps: steps of each chain; averages leave out the first half.
        method: ``metropolis`` or ``gibbs``.
        seed: seed of the chains.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        `Restored`: the chains' last states ``samples``, ``(K, N, *event_shape)``; ``mean``, ``sd``
        and ``se`` (its Monte Carlo error), each ``(N, *event_shape)``; the acceptance rates.

    Raises:
        UserError: a mask of another type or shape; a pair for which there is no such chain, such as
            one without a latent, or whose pixels depend on each other given z.

    Reference:
        Mattei and Frellsen 2018, "Leveraging the Exact Likelihood of Deep Latent Variable Models",
        section 3.3; for ``gibbs`` Rezende et al. 2014, appendix F.
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
    """The images, zeros where a pixel is missing, and where that is."""
    images = as_tensor(x, "x")
    mask = images.isnan() if missing is None else as_mask(missing, images, "missing")
    return as_images(images.masked_fill(mask, 0)).cpu(), mask.cpu()
