"""Normalizing flows: zuko's, as Pyro distributions on R^D."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform, constraints

from pyro_vae.nn.conditional import check_latent_dim
from pyro_vae.validation import check_choice, check_whole


@contextmanager
def _validation_kept() -> Iterator[None]:
    """Importing zuko switches the checks of arguments off in all of torch.distributions."""
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


with _validation_kept():
    import zuko
    from zuko.distributions import DiagNormal, NormalizingFlow
    from zuko.flows import MAF, NSF, ElementWiseTransform, Flow
    from zuko.transforms import ComposedTransform

FLOWS = ("RealNVP", "MAF", "NSF")
"""Flows by name; a coupling is the autoregressive one in two passes (and has no index that a
trace can't follow).
"""


class FlowDistribution(ZukoToPyro):
    """A zuko distribution on R^D as Pyro's; a draw's own log density is kept from the pass that
    drew it.
    """

    # torch's contract for a distribution class
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector

    @property
    def event_shape(self) -> torch.Size:
        """``(D,)``: zuko asks the transform, and torch's affine one answers with its batch."""
        return torch.Size(self.dist.base.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, *batch_shape, D)``."""
        draws: Tensor = self(torch.Size(sample_shape))
        return draws

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same law, for a larger batch of independent draws."""
        return FlowDistribution(self.dist.expand(torch.Size(batch_shape)))


def density_flow(name: str, num_dims: int, depth: int, width: int) -> nn.Module:
    """A lazy flow whose density is one pass (z → u ~ N(0, I)); its draws take one pass a dimension
    (a coupling: two).

    It begins with an elementwise affine map: a spline is the identity outside [−5, 5].
    """
    check_choice("flow", name, FLOWS)
    kind, args = (NSF, {}) if name == "NSF" else (MAF, {"passes": 2} if name == "RealNVP" else {})
    flow = kind(num_dims, transforms=depth, hidden_features=_hidden(width), **args)
    affine = ElementWiseTransform(num_dims)
    for parameter in affine.parameters():
        nn.init.zeros_(parameter)  # the identity
    return Flow([affine, *_parts(flow.transform)], flow.base)


def unconditional(flow: nn.Module) -> FlowDistribution:
    """The law of a lazy flow without a context, batch shape ``()``."""
    return FlowDistribution(flow())


def spline_transform(
    num_dims: int, num_context: int, depth: int, width: int, bins: int
) -> nn.Module:
    """A lazy autoregressive rational-quadratic spline u → v given a context, one pass (Durkan et
    al. 2019).
    """
    flow = NSF(num_dims, num_context, bins=bins, transforms=depth, hidden_features=_hidden(width))
    transform: nn.Module = flow.transform
    return transform


def pushed_forward(transform: Transform, loc: Tensor, scale: Tensor) -> FlowDistribution:
    """z = loc + scale · T(u), u ~ N(0, I): draws with their density are one pass, foreign z are
    inverted.

    The affine map comes last, as T may be the identity outside a box.
    """
    forward = ComposedTransform(transform, AffineTransform(loc, scale, event_dim=1))
    base = DiagNormal(torch.zeros_like(loc), torch.ones_like(scale))
    return FlowDistribution(NormalizingFlow(forward.inv, base))


def check_depth(part: str, depth: Any, latent_dim: Any) -> int:
    """A whole number of steps, 1 or more, on so many latents."""
    check_latent_dim(latent_dim)
    return check_whole(part + "(depth={!r})", depth, "steps")


def _hidden(width: int) -> tuple[int, int]:
    checked = check_whole("a flow of width={!r}", width, "units a layer")
    return (checked, checked)


def _parts(transform: Any) -> list[nn.Module]:
    return (
        list(transform.transforms)
        if isinstance(transform, zuko.lazy.LazyComposedTransform)
        else [transform]
    )
