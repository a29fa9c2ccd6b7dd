"""The exact posterior as a guide."""

from typing import Any, ClassVar

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.protocols import hook


class ExactPosterior(PyroModule):
    """q(z | x) = p(z | x), the model's own ``posterior(x)``: the ELBO is log p(x).

    Every log weight is log p(x) too. The guide has no parameters, so SVI of this pair is maximum
    likelihood.

    Args:
        model: a model with ``posterior(x)``, such as ``LinearGaussian``.

    Raises:
        UserError: the model has no ``posterior``.

    Reference:
        Tipping and Bishop 1999, "Probabilistic Principal Component Analysis" (for
        ``LinearGaussian``).
    """

    slot: ClassVar[str] = "guide"

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not callable(hook(model, "posterior")):
            raise UserError(
                "ExactPosterior needs a model with a closed form of p(z | x), such as "
                f"LinearGaussian. {type(model).__name__} has no method posterior(x). Use a "
                "guide that approximates the posterior, such as MeanField"
            )
        self._model = (
            model,
        )  # a tuple hides it from the guide's submodules: freezing q does not freeze p

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Sample z ~ p(z | x), ``(B, latent_dim)``."""
        posterior = self._model[0].posterior(x)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample("z", posterior)
        return z
