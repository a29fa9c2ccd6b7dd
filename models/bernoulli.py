"""Bernoulli likelihood, for binary pixels."""

from typing import Any, ClassVar, Literal

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.conditional import Likelihood, NetSpec, Observes, inner_logit


class Bernoulli(Likelihood):
    """x_d | z ~ Bernoulli(σ(l_d(z))): binary pixels; the decoder gives logits (AEVB, appendix C.1).

    Example::

        likelihood = models.Bernoulli((1, 8, 8), 8)  # p(x | z), 8 latent dimensions

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (AEVB), appendix C.1.
    """

    kind: ClassVar[Literal["mass", "density"]] = "mass"
    observes: ClassVar[Observes] = "binary"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        super().__init__(event_shape, latent_dim, 1, net, **net_args)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        (logits,) = self.outputs(context)
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The mean's logit."""
        return (inner_logit(mean),)
