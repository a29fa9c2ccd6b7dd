"""NaN guard: which training steps were not finite, remembered on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Health:
    """A step that is not finite leaves no trace in parameters and optimiser.

    ``skip=False``: from the first step on whose loss is not finite, nothing changes any more.
    Gradients are not looked at, which would cost a tenth of a small net's step: one that is not
    finite under a finite loss shows in the next loss. ``skip=True``: steps whose loss or gradient
    is not finite are left out, and counted. `read` is the one host read.
    """

    step: Tensor  # 0-dim int64: steps that were tried
    first_bad: Tensor  # 0-dim int64: the first one that was not finite, or −1
    num_bad: Tensor  # 0-dim int64
    skip: bool = False

    @staticmethod
    def on(device: torch.device, *, skip: bool = False) -> Health:
        """The memory of a training that begins."""
        first, none = (
            torch.tensor(-1, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        return Health(none.clone(), first, none.clone(), skip)

    def begin(self, step: int, num_bad: int) -> None:
        """Remember no more than that so many steps were tried, and so many left out: where a
        training goes on.
        """
        for tensor, value in zip(self.tensors, (step, -1, num_bad), strict=True):
            tensor.fill_(value)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a compiled step changes in place."""
        return self.step, self.first_bad, self.num_bad

    def observe(self, sums: Tensor, norm: Tensor | None) -> Tensor:
        """1 where this step must leave no trace, else 0: float32, 0-dim, the fused optimisers' own
        ``found_inf``.

        ``norm``, the gradients' 2-norm, is looked at where it is given.
        """
        finite = torch.isfinite(sums[0])
        bad = ~(finite if norm is None else finite & torch.isfinite(norm))
        first = torch.where(bad & (self.first_bad < 0), self.step, self.first_bad)
        self.first_bad.copy_(first)
        self.num_bad.add_(bad.to(torch.int64))
        self.step.add_(1)
        left_out = bad if self.skip else first >= 0
        return left_out.to(torch.float32)

    def read(self) -> tuple[int | None, int]:
        """The host read: the first step that was not finite (or None), and how many there were."""
        _, first, count = torch.stack(self.tensors).tolist()
        return None if first < 0 else first, count


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm over all gradients, 0-dim: not finite where one of them isn't."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
