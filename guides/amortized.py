"""Amortized guides: one network gives every image its variational parameters."""

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.nn import make_encoder
from pyro_vae.nn.conditional import NetSpec, check_latent_dim


class _AbstractPyroModule(type(PyroModule), ABCMeta):  # type: ignore[misc]
    """PyroModule has a metaclass of its own; this one lets a guide be abstract as well."""


class AmortizedGuide(PyroModule, metaclass=_AbstractPyroModule):
    """q(z | x) = build(η), η = local(x): a guide whose network gives each image's parameters.

    Images are independent, in the plate ``data``. η, ``(B, num_params)``, are the variational
    parameters of each image, unconstrained and deterministic given x. To write another family,
    override ``build``. To find η in another way (a table, a few gradient steps), override
    ``local``. ``net=None`` builds no network.

    ``amortized`` is False if images that it was not fitted on have no q(z | x). ``first_order`` is
    True if ``local`` leaves out a part of its own gradient by design. ``scoring_passes`` is the
    number of network passes that ``build(η)`` needs to score a z that it did not draw; 0 for a
    closed density.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        num_params: P, numbers in η for each image.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``; None for no
            network.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), section 3.
    """

    slot: ClassVar[str] = "guide"
    amortized: ClassVar[bool] = True
    first_order: ClassVar[bool] = False
    scoring_passes: int = 0

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        num_params: int,
        net: NetSpec | None = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__()
        check_latent_dim(latent_dim)
        self.latent_dim = latent_dim
        if net is not None:
            self.net = make_encoder(net, event_shape, num_params, **net_args)

    def fields_go_to(self) -> tuple[Callable[..., Any], ...]:
        """The programs to which ``forward`` passes its named fields on: their signatures name
        them.
        """
        return (self.local,)

    def local(self, x: Tensor, **_: Any) -> Tensor:
        """η, ``(B, num_params)``, for the images ``x``, ``(B, *event_shape)``."""
        eta: Tensor = self.net(x)
        return eta

    def start(self, x: Tensor, **fields: Any) -> Tensor:
        """η at which `refine` begins, ``(B, num_params)``."""
        return self.local(x, **fields)

    @abstractmethod
    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """q(z | x), batch shape ``(B,)``, from η, ``(B, num_params)``."""

    def forward(self, x: Tensor, **fields: Any) -> Tensor:
        """Sample z ~ q(z | x), ``(B, latent_dim)``."""
        eta = self.local(x, **fields)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample("z", self.build(eta))
        return z
