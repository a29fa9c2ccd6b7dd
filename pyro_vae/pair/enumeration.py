"""Exact enumeration of discrete latents, by Pyro's enumeration.

Those that are not in the guide are summed out: p(x, z) = Σ_c p(c) p(z | c) p(x | z, c). Those of
the guide that are to be enumerated (``config_enumerate``) are V weighted draws,
E_q(y | x)[f] = Σ_y q(y | x) f.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.pair.nodes import innermost


def enumerated(
    call: Callable[..., Any], sites: Collection[str], first_dim: int
) -> Callable[..., Any]:
    """``call`` with these ``sites``, and no others, at all their values at once; ``call`` itself
    where there are none.

    Each site's values are along a dimension of its own, from ``first_dim`` to the left.
    """
    if not sites:
        return call

    def parallel(site: Any) -> dict[str, str | None]:
        return {"enumerate": "parallel" if site["name"] in sites else None}

    every: Callable[..., Any] = poutine.enum(
        poutine.infer_config(call, parallel), first_available_dim=first_dim
    )
    return every


def conditionals(log_probs: Mapping[str, Tensor], summed: Collection[str]) -> dict[str, Tensor]:
    """log p(v_i | v_1 … v_{i−1}) of each site v_i that is not summed out, ``(K, B)``, nats.

    ``log_probs`` are given c, in the model's order: ``(*values, K, B)`` where a site depends on c,
    else ``(K, B)``. With A_i = logsumexp_c [log p(c) + Σ_{j ≤ i} log p(v_j | v_<j, c)] each is A_i
    − A_{i−1}, so that their sum is log Σ_c p(c, v): the prior of z becomes the mixture p(z), and
    the likelihood p(x | z) = Σ_c p(c | z) p(x | z, c).
    """
    found: dict[str, Tensor] = {}
    joint: Any = 0.0
    before: Tensor | None = None  # A_{i−1}; none yet is Σ_c p(c) = 1
    for name, log_prob in log_probs.items():
        if log_prob.dim() == 2:  # c does not enter it
            found[name] = log_prob
            continue
        joint = joint + log_prob
        if name in summed:
            continue
        after = torch.logsumexp(joint.flatten(0, -3), 0)
        if before is None:
            found[name] = after
        else:  # a z that no c allows has log p(z) = −∞, and leaves nothing to divide by
            found[name] = after - torch.where(
                before == -torch.inf, torch.zeros_like(before), before
            )
        before = after
    return found


def num_values(node: Any) -> int:
    """How many values a site that is to be summed out has; a ``UserError`` where they can't be
    summed over.
    """
    fn, base = node["fn"], innermost(node["fn"])
    law = f"site {node['name']!r} ({type(base).__name__})"
    if not fn.has_enumerate_support and base.has_enumerate_support:
        raise UserError(
            f"{law} is missing in the guide, and its event of shape {tuple(fn.event_shape)} has "
            "too many values to sum it out: sample it in the guide, or write one site for each "
            "of its numbers"
        )
    if not fn.has_enumerate_support:
        raise UserError(
            f"{law} is missing in the guide, and it can't be summed out, because it has no "
            "finite list of values: sample it in the guide"
        )
    if node["mask"] is not None and node["mask"] is not True:
        raise UserError(
            f"{law} is missing in the guide, and it can't be summed out, because it is masked: "
            "leave the mask out, or sample it in the guide"
        )
    try:
        return int(fn.enumerate_support(expand=False).shape[0])
    except NotImplementedError as error:
        raise UserError(
            f"{law} is missing in the guide, and can't be summed out ({error}): sample it there"
        ) from None
