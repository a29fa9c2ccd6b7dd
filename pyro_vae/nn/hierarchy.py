"""What a guide of a hierarchy asks of its model."""

from __future__ import annotations

from typing import Any

from pyro_vae.errors import UserError
from pyro_vae.protocols import hook


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
