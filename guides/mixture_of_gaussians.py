"""Mixture-of-Gaussians guide."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.guides.amortized import AmortizedGuide, NetSpec
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.validation import check_whole


class EqualMixture(dist.MixtureSameFamily):
    """A mixture with equal, fixed weights: reparameterised, as no weight depends on a parameter.

    E_q f = mean over components of E_{q_c} f, so that a component drawn evenly and its own rsample
    give the exact pathwise gradient (torch's mixture has none).
    """

    has_rsample = True
    support = constraints.real_vector

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, ``(*sample_shape, *batch_shape, D)``."""
        draws = self.component_distribution.rsample(sample_shape)
        which = torch.randint(draws.shape[-2], draws.shape[:-2], device=draws.device)
        index = which[..., None, None].expand(*which.shape, 1, draws.shape[-1])
        return draws.gather(-2, index).squeeze(-2)


class MixtureOfGaussians(AmortizedGuide):
    """q(z | x) = 1/C Σ_c N(μ_c(x), diag σ_c²(x)), a mixture with equal weights.

    η = (μ_c, log σ_c) of each of the C components. The KL is sampled. Gradients are pathwise: a
    component is drawn evenly, and no weight depends on a parameter.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        components: C, the number of Gaussians.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Morningstar et al. 2021, "Automatic Differentiation Variational Inference with Mixtures"
        (gradients of a mixture).
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        components: int = 4,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_whole("MixtureOfGaussians(components={!r})", components, "components")
        super().__init__(event_shape, latent_dim, 2 * components * latent_dim, net, **net_args)

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """The mixture from ``(B, num_params)``."""
        loc, log_scale = eta.unflatten(-1, (-1, 2 * self.latent_dim)).chunk(2, dim=-1)
        weights = dist.Categorical(logits=torch.zeros_like(loc[..., 0]))
        return EqualMixture(weights, dist.Normal(loc, log_scale.exp()).to_event(1))
