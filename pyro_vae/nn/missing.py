"""Missing entries (NaN): left out of the density, and 0 to the encoder."""

from __future__ import annotations

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.errors import UserError
from pyro_vae.validation import check_choice


class _Seen(dist.MaskedDistribution):
    """A law of single numbers that has density 1 at NaN."""

    def __init__(self, base: dist.TorchDistribution) -> None:
        super().__init__(base, True)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        return _Seen(self.base_dist.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        seen = ~value.isnan()
        log_prob: Tensor = self.base_dist.log_prob(torch.where(seen, value, 0.0))
        return torch.where(seen, log_prob, 0.0)


def of_seen(law: dist.TorchDistribution) -> dist.TorchDistribution:
    """The law of an image, of which a NaN is left out: its log_prob is log p(x_obs | z).

    Raises:
        UserError: the pixels of ``law`` depend on each other.
    """
    base, dims = law, 0
    while isinstance(base, Independent):
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    if base.event_shape:
        raise UserError(
            f"missing='nan': the pixels of {type(base).__name__} depend on each other given z, so "
            "none can be left out: use a likelihood that is a product over pixels"
        )
    return _Seen(base).to_event(dims)


def check_missing(missing: str | None) -> str | None:
    """``nan``, by which missing entries are marked, or None, where there are none."""
    return missing if missing is None else check_choice("missing", missing, ["nan"])
