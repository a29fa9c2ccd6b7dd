"""The guide of a model without latents to sample."""

from typing import Any, ClassVar

from pyro.nn import PyroModule
from torch import Tensor


class Empty(PyroModule):
    """q = 1: nothing is sampled, discrete latents are summed out, and log p(x) is exact.

    The ELBO is log p(x) too, so that SVI is maximum likelihood, and one weight is enough: ``se_mc``
    is 0.
    """

    slot: ClassVar[str] = "guide"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor, **_: Any) -> None:
        """Sample nothing."""
