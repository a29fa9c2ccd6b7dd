"""Inverse autoregressive flow (IAF) guide."""

import warnings
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.transforms import ConditionalAffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.nn.flows import check_depth
from pyro_vae.validation import check_whole


class IAF(AmortizedGuide):
    """z = f_T ∘ … ∘ f_1(μ + σ ε): inverse autoregressive flow (Kingma et al. 2016).

    f_t(z) = s ⊙ z + (1 − s) ⊙ m, where s_d and m_d depend on the dimensions of z before d, and on a
    context h(x). η = (μ, log σ, h). The order of the dimensions is reversed between steps. A draw
    takes one network pass a step. A z that the guide did not draw is scored by inversion, D passes
    a step.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        depth: T, the number of steps.
        width: units in each of the two hidden layers of a step, ``latent_dim`` or more.
        context_dim: numbers in h(x).
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, ``width`` below ``latent_dim``,
            or an unknown network.

    Reference:
        Kingma et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow",
        equation 14 and algorithm 1.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        depth: int = 4,
        width: int = 100,
        context_dim: int = 50,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_depth("IAF", depth, latent_dim)
        check_whole("IAF(width={!r})", width, "units a layer")
        check_whole("IAF(context_dim={!r})", context_dim, "numbers in the context")
        super().__init__(event_shape, latent_dim, 2 * latent_dim + context_dim, net, **net_args)
        if width < latent_dim:
            raise UserError(
                f"IAF(width={width}): the flow's layers need latent_dim = {latent_dim} units or "
                "more"
            )
        self.scoring_passes = depth * latent_dim
        order = list(range(latent_dim))
        self.orders = [order[::-1] if step % 2 else order for step in range(depth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pyro's hint that one latent needs no flow
            networks = [
                ConditionalAutoRegressiveNN(
                    latent_dim, context_dim, [width, width], permutation=torch.tensor(each)
                )
                for each in self.orders
            ]
        self.flow: Any = nn.ModuleList(
            ConditionalAffineAutoregressive(network, stable=True) for network in networks
        )

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The law of z from ``(B, num_params)``."""
        num_dims = self.latent_dim
        loc, log_scale, context = eta.split(
            [num_dims, num_dims, eta.shape[-1] - 2 * num_dims], dim=-1
        )
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        steps = [step.condition(context) for step in self.flow]
        for step, order in zip(steps, self.orders, strict=True):
            step.arn.permutation = (
                order  # the inversion walks along it: over a tensor, no trace could follow
            )
        return dist.TransformedDistribution(base, steps)
