"""A check whether a model reads the values of x when it generates x."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import UserError, first_line
from pyro_vae.pair.nodes import Fields, plain_draw, sample_nodes
from pyro_vae.pair.program import Program


def refuse_unconditioned(model: Program, blank: Tensor, others: Tensor, fields: Fields) -> Any:
    """The model's trace on zeros; a ``UserError`` where the model's laws are others on other images.

    Args:
        blank: zeros, ``(B, *event_shape)``.
        others: as many images, of the set where there are any.
        fields: B rows.

    Raises:
        UserError: a law depends on the values of x; the model fails on zeros.
    """

    def generated(x: Tensor) -> dict[str, Any]:
        torch.manual_seed(0)
        return dict(sample_nodes(plain_draw(poutine.uncondition(model), x.clone(), fields)))

    try:
        on_zeros, trace = generated(blank), plain_draw(model, blank, fields)
    except UserError:
        raise
    except Exception as error:  # whatever a program raises on images that are none
        raise UserError(
            f"the model fails on images of zeros ({first_line(error)}). sample and simulate "
            "call the model with zeros for the images that it is to generate. If the model is "
            "conditioned on x, give these images, x=…, one row for each new image"
        ) from error
    for images in (others, torch.ones_like(blank)):
        try:
            found = generated(images)
        except Exception:  # zeros are what it will be run on
            continue
        for name, node in on_zeros.items():
            if name not in found or not _same_law(node, found[name]):
                raise UserError(
                    f"the distribution of site {name!r} depends on the values of x (a "
                    "condition, a library size), so nothing can be generated without them: "
                    "give the images that it is conditioned on, x=…, one row for each new image"
                )
    return trace


def _same_law(node: Any, other: Any) -> bool:
    """Whether both give the first one's draw one density."""
    if node["fn"].shape() != other["fn"].shape():
        return False
    own, others = (each["fn"].log_prob(node["value"]) for each in (node, other))
    return torch.allclose(own, others, rtol=1e-4, atol=1e-5, equal_nan=True)
