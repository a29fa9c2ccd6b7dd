"""Supports of guide and prior: where one has probability and the other has none."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import UserError, first_line
from pyro_vae.pair.comparison import probe
from pyro_vae.pair.layouts import trace_model
from pyro_vae.pair.nodes import (
    Fields,
    copies,
    latent_nodes,
    law_of,
    log_prob_of,
    masked,
    plain_draw,
    repeated,
)
from pyro_vae.pair.runtime import Pair

NUM_IMAGES, NUM_DRAWS = 5, 20
"""The prior's share m that no guide draws is met with probability 1 − (1 − m)^100: 63% for 1%, 99%
for 5%.
"""

Nodes = dict[str, Any]


def support_notes(pair: Pair, x: Tensor, fields: Fields) -> tuple[str, ...]:
    """Warnings where the guide has no density at draws of the prior, found by the values
    themselves.

    What is there is missing in the mean weight, and no diagnostic of the guide's own draws can
    see it.

    Args:
        x: images, ``(N, *event_shape)``; 20 draws at each of the first five are looked at.
        fields: with one row an image.

    Raises:
        UserError: the guide draws where the prior has no density, so that the ELBO is −∞.
    """
    structure = pair.structure(x, fields)
    if structure.point_masses or not structure.latents:
        return ()
    batch = partial(copies, *repeated(*probe(x, fields, NUM_IMAGES), NUM_DRAWS))

    with pair.probing():
        torch.manual_seed(0)
        try:
            drawn = plain_draw(pair.guide, *batch())
            model = latent_nodes(trace_model(pair.model, drawn, *batch(), structure.geometry))
        except Exception as error:  # whatever a program raises on a batch of repeated images
            return (
                "the two supports are not checked, because the programs fail on repeated "
                f"images ({first_line(error)})",
            )
        guide = latent_nodes(drawn)
        for name in structure.latents:
            if share := _share_outside(model[name], guide[name]):
                own_law, prior_law = law_of(guide[name]["fn"]), law_of(model[name]["fn"])
                raise UserError(
                    f"site {name!r}: {share:.0%} of the guide's draws ({own_law}) are outside the "
                    f"support of the model's {prior_law}, where p(z) = 0 and the ELBO is −∞: give "
                    "the guide a distribution on that support"
                )
        if own := structure.own_draws_only:
            return (
                f"site {own[0]!r}: the guide only scores its own draws, so its support is not "
                "checked",
            )
        try:
            drawn = plain_draw(pair.model, *batch())
            guide = latent_nodes(plain_draw(poutine.replay(pair.guide, trace=drawn), *batch()))
        except Exception as error:
            return (
                "the guide's support is not checked, because it can't be scored at draws of "
                f"the prior ({first_line(error)})",
            )
        prior = latent_nodes(drawn)
        shares = {name: _share_outside(guide[name], prior[name]) for name in structure.latents}
    return tuple(
        f"site {name!r}: the guide ({law_of(guide[name]['fn'])}) has no density at {share:.0%} "
        f"of the prior's draws ({law_of(prior[name]['fn'])}). log p(x) is too low by what these "
        "draws would add, and no number from the guide's draws can show it"
        for name, share in shares.items()
        if share
    )


def _share_outside(node: Any, drawn: Any) -> float:
    """The share of the values of ``drawn``, inside its own support, at which the law of ``node``
    has no density.
    """
    value = drawn["value"]
    inside, admitted = _admits(node, value), _admits(drawn, value)
    # what rounding puts outside of its own law is not the other's fault
    return float((~inside & admitted).double().sum() / admitted.double().sum().clamp(min=1))


def _admits(node: Any, value: Tensor) -> Tensor:
    """Where the value is in the law's support with a density above 0, or is masked."""
    log_prob = log_prob_of({**node, "value": value})
    inside = ~(log_prob.isnan() | (log_prob == -torch.inf))
    with suppress(
        NotImplementedError, KeyError
    ):  # a law that names no support, a flow without an inverse
        inside = inside & _in_support(node["fn"], value)
    return masked(~inside, node["mask"]).logical_not()


def _in_support(fn: Any, value: Tensor) -> Tensor:
    """``fn.support.check(value)``; of a transformed law, which names its last transform's range
    alone, its base's as well.
    """
    inside: Tensor = fn.support.check(value)
    if isinstance(fn, dist.Independent):
        each = _in_support(fn.base_dist, value)
        for _ in range(fn.reinterpreted_batch_ndims):
            each = each.all(-1)
        return inside & each
    if isinstance(fn, dist.TransformedDistribution):
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
        return inside & _in_support(fn.base_dist, value)
    return inside
