"""The networks of a hierarchy, one for each level."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pyro_vae.errors import UserError
from pyro_vae.nn.mlp import MLP
from pyro_vae.nn.net import OF_ONE_DIRECTION, Net, NetSpec, make_encoder, unpacked
from pyro_vae.protocols import hook


def encoders(
    event_shape: tuple[int, ...],
    dims: Sequence[int],
    per_latent: int,
    net: NetSpec,
    net_args: Mapping[str, Any],
) -> list[Net]:
    """Networks upwards from the image: μ and log σ of each level, from the image and from
    ``per_latent`` numbers a latent below.

    Raises:
        UserError: as `level_args` does.
    """
    net, net_args = unpacked(net, net_args)
    first, *others = level_args(net_args, len(dims))
    between = zip(pairwise(dims), others, strict=True)
    lowest = make_encoder(net, event_shape, 2 * dims[0], **first)
    return [
        lowest,
        *(
            MLP.encoder((per_latent * below,), 2 * above, **args)
            for (below, above), args in between
        ),
    ]


def level_args(net_args: Mapping[str, Any], num_levels: int) -> list[dict[str, Any]]:
    """The network's arguments at each level, from the image upwards; ``hidden`` has widths for
    all, or each level's own.

    The first level has them all. Above it networks are MLPs between vectors, and have those that an
    MLP takes.

    Raises:
        UserError: ``hidden`` has widths for another number of levels.
    """
    hidden: Any = net_args.get("hidden")
    nested = isinstance(hidden, tuple | list) and any(
        isinstance(widths, tuple | list) for widths in hidden
    )
    if nested and len(hidden) != num_levels:
        raise UserError(
            f"hidden={hidden!r} has widths for {len(hidden)} levels, and the hierarchy has "
            f"{num_levels}: give one tuple of widths for each level, from the image upwards, or "
            "one for all"
        )
    shared = [
        name for name in inspect.signature(MLP).parameters if name not in OF_ONE_DIRECTION
    ]  # those are of pixels
    levels = [dict(net_args)] + [
        {k: v for k, v in net_args.items() if k in shared} for _ in range(num_levels - 1)
    ]
    if nested:
        for level, widths in zip(levels, hidden, strict=True):
            level["hidden"] = widths
    return levels


def levels_of(guide: str, model: Any) -> tuple[int, ...]:
    """The model's ``latent_dims``, from the image upwards; a ``UserError`` where it has no layers
    of latents.
    """
    dims = hook(model, "latent_dims")
    if dims is None:
        raise UserError(
            f"{guide} is a guide for a model with layers of latents z1, z2, …, such as "
            f"Hierarchical, and {type(model).__name__} has no latent_dims: use a guide of one "
            "latent, such as MeanField"
        )
    return tuple(dims)
