"""A guide whose variational parameters are a table with a row for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_vae.errors import UserError
from pyro_vae.pair.nodes import Fields
from pyro_vae.pair.program import Program
from pyro_vae.protocols import Local, hook


class RefinedGuide(nn.Module):
    """The guide ``base`` with η looked up instead of computed: z ~ build(η_i) for the i-th of its
    images.

    Images are known by the field ``index``, their row, and must be those of that row: on any other,
    the guide raises a ``UserError`` (inside a traced program, which can't raise, its parameters
    become NaN, which every estimator refuses).
    """

    images: Tensor

    def __init__(self, base: nn.Module, eta: Tensor, images: Tensor) -> None:
        super().__init__()
        self.base = base
        self.eta = nn.Parameter(eta.clone())  # (N, P)
        self.register_buffer("images", images.detach(), persistent=False)  # (N, *event_shape)

    def forward(self, x: Tensor, index: Tensor | None = None, **fields: Any) -> Any:
        """q(z | x) of the images in these rows."""
        eta = self.look_up(x, index)
        named = fields if index is None else {**fields, "index": index}
        with _local_is(self.base, eta):
            return Program("guide", self.base)(x, named)

    def look_up(self, x: Tensor, index: Tensor | None) -> Tensor:
        """η of these images, ``(B, P)``."""
        rows = torch.arange(len(x), device=x.device) if index is None else index
        tracing = get_proxy_mode() is not None
        if not tracing and (len(rows) != len(x) or int(rows.max()) >= len(self.images)):
            raise UserError(_other_images(f"there is no row {int(rows.max())}", len(self.images)))
        own = self.images.index_select(0, rows)
        same = ((own == x) | (own.isnan() & x.isnan())).flatten(1).all(1)
        if not tracing and not bool(same.all()):
            row = int(rows[~same][0])
            raise UserError(
                _other_images(f"the image in row {row} is another one", len(self.images))
            )
        eta = self.eta.index_select(0, rows)
        return torch.where(
            same.unsqueeze(-1), eta, torch.full((), torch.nan, dtype=eta.dtype, device=eta.device)
        )


def _other_images(what: str, num_images: int) -> str:
    return (
        f"this guide was refined for {num_images} images, and {what}. Call refine(model, guide, "
        "x) on the images that you score, binarized and in the same order"
    )


def local_parameters(
    guide: Callable[..., Any], x: Tensor, fields: Fields
) -> tuple[nn.Module, Tensor]:
    """The guide, if it has ``local`` and ``build``, and η = local(x), ``(B, P)``, or start(x) where
    it has that.

    Raises:
        UserError: it has none, or η is no ``(B, P)``; it says what to write.
    """
    if not isinstance(guide, nn.Module) or not isinstance(guide, Local):
        raise UserError(
            f"refine optimises the parameters η of q(z | x) of each image, but {_name(guide)} "
            "has no methods for them: write the guide as an nn.Module with local(x, **fields) "
            "-> η, (B, P) and unconstrained, and build(η) -> q(z | x), and sample "
            "build(self.local(x)) in its forward, as pyro_vae.guides.AmortizedGuide does"
        )
    local = hook(guide, "start") or guide.local
    with (
        torch.no_grad(),
        poutine.block(),
    ):  # outside the plate, and unseen: forward will open it again
        eta = Program("guide's local", local)(x, fields)
    if (
        not isinstance(eta, Tensor)
        or eta.dim() != 2
        or len(eta) != len(x)
        or not eta.is_floating_point()
    ):
        shape = tuple(eta.shape) if isinstance(eta, Tensor) else type(eta).__name__
        raise UserError(
            f"{_name(guide)}.local gives {shape} for {len(x)} images: expected η, real numbers of "
            f"shape ({len(x)}, P)"
        )
    return guide, eta.detach().clone()


def _name(guide: Any) -> str:
    return getattr(guide, "__qualname__", type(guide).__name__)


@contextmanager
def _local_is(guide: nn.Module, eta: Tensor) -> Iterator[None]:
    """Inside, ``guide.local`` gives ``eta``, whatever it is asked."""
    own, before = vars(guide), vars(guide).get("local")
    own["local"] = lambda *_, **__: eta
    try:
        yield
    finally:
        del own["local"]
        if before is not None:
            own["local"] = before
