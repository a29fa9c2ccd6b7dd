"""Non-amortized guide: a table of variational parameters, one row for each image."""

from typing import Any, ClassVar

import torch
from pyro_vae.guides.mean_field import MeanField
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_vae.errors import UserError
from pyro_vae.nn.sparse_rows import mark_rows
from pyro_vae.pair.parameter_store import in_dry_run
from pyro_vae.validation import check_whole


class PerDatum(MeanField):
    """q_n(z) = N(μ_n, diag σ_n²) for image n: one row of a table for each image, no network.

    Each training image has its own η = (μ, log σ): classical variational inference, without
    amortization. The engine gives the program the field ``index``, the images' rows of the training
    set; a step changes only these rows. Other images have no row: `refine` finds one for them.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        num_data: the number of training images, rows of the table.

    Raises:
        UserError: it is evaluated on an image that its row was not trained on. Inside a traced
            program, which can't raise, the row becomes NaN, which every estimator refuses.

    Reference:
        Hoffman et al. 2013, "Stochastic Variational Inference".
    """

    amortized: ClassVar[bool] = False
    direction: Tensor
    seen: Tensor

    def __init__(self, event_shape: tuple[int, ...], latent_dim: int, num_data: int) -> None:
        check_whole("PerDatum(num_data={!r})", num_data, "training images")
        super().__init__(event_shape, latent_dim, net=None)
        self.table = nn.Parameter(
            torch.zeros(num_data, 2 * latent_dim)
        )  # each q_n begins as N(0, I)
        # what distinguishes an image from another: |x · r|, one number; −1 for a row that no
        # training step has seen
        num_pixels = torch.Size(event_shape).numel()
        self.register_buffer("direction", torch.arange(1.0, num_pixels + 1).sin(), persistent=False)
        self.register_buffer("seen", torch.full((num_data,), -1.0))

    def local(self, x: Tensor, index: Tensor | None = None, **_: Any) -> Tensor:
        """The images' rows of the table, ``(B, 2 · latent_dim)``."""
        rows, known = self._rows(x, index)
        mark_rows(self.table)
        eta = self.table.index_select(0, rows)
        return torch.where(
            known.unsqueeze(-1), eta, torch.full((), torch.nan, dtype=eta.dtype, device=eta.device)
        )

    def start(self, x: Tensor, index: Tensor | None = None, **_: Any) -> Tensor:
        """The mean of all rows, for images that have none."""
        return self.table.mean(0).expand(len(x), -1)

    def _rows(self, x: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """The rows to read, and whether they are these images'."""
        if index is None:
            raise UserError(
                "PerDatum is a table with one row for each training image: call it with "
                "index=…, the rows of these images"
            )
        free, num_data = get_proxy_mode() is None, len(self.seen)
        if free and (len(index) != len(x) or int(index.max()) >= num_data):
            raise UserError(self._other_images(f"there is no row {int(index.max())}"))
        rows = index.clamp(max=num_data - 1)
        mark = (x.nan_to_num().flatten(1) @ self.direction).abs()
        if self.training:
            if not in_dry_run():
                with torch.no_grad():
                    self.seen.index_copy_(0, rows, mark.detach())
            return rows, index < num_data
        seen = self.seen.index_select(0, rows)
        fitted = (
            self.seen >= 0
        ).any()  # before a first step any image may be scored, by q(z) = N(0, I)
        same = torch.where(seen < 0, ~fitted, (mark - seen).abs() <= 1e-4 * (1 + seen))
        if in_dry_run():
            return rows, index < num_data
        if free and not bool(same.all()):
            raise UserError(
                self._other_images(
                    f"the image in row {int(index[~same][0])} is not the one it was fitted on"
                )
            )
        return rows, same & (index < num_data)

    def _other_images(self, what: str) -> str:
        return (
            f"PerDatum has one q(z) for each of its {len(self.seen)} training images, and "
            f"{what}. For other images call refine(model, guide, x), which fits one q(z) for "
            "each image of x, or use an amortized guide such as MeanField"
        )
