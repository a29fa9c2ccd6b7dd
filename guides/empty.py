"""The empty guide, for a model without latents to draw."""

from typing import Any, ClassVar

from pyro.nn import PyroModule
from torch import Tensor


class Empty(PyroModule):
    """q = 1: the guide of a model without latents to draw; discrete latents are summed out, log
    p(x) is exact.

    The ELBO is log p(x), so SVI is maximum likelihood. One weight is enough, and ``se_mc`` is 0.
    """

    slot: ClassVar[str] = "guide"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor, **_: Any) -> None:
        """Sample nothing."""
