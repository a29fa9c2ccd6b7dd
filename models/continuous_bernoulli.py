"""Continuous Bernoulli likelihood, for pixels in [0, 1]."""

import math

import torch
from pyro import distributions as dist
from pyro_vae.models.bernoulli import Bernoulli
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.nn.conditional import INNER
from pyro_vae.nn.special import solve


class ContinuousBernoulli(Bernoulli):
    """x_d | z ~ CB(λ = σ(l_d(z))), density C(λ) λ^x (1−λ)^(1−x) on [0, 1].

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        net: the decoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, latent_dim)`` to ``(rows, per_pixel · C, …)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Loaiza-Ganem and Cunningham 2019, "The Continuous Bernoulli: Fixing a Pervasive Error in
        Variational Autoencoders".
    """

    kind = "density"
    observes = "unit"

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | z = context)."""
        (logits,) = self.outputs(context)
        return _ContinuousBernoulli(logits=logits).to_event(len(self.event_shape))

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The logit, which is not that of the mean: E x = ½ + ½ coth(l/2) − 1/l."""
        return (solve(_mean, mean.clamp(INNER, 1 - INNER), -2 / INNER, 2 / INNER),)


class _ContinuousBernoulli(dist.ContinuousBernoulli):
    """Pyro's, computed from the logit: through λ, which float32 rounds to within 1e-7 of 0 and 1,
    the mass at l = 30 is 0.5.
    """

    @property
    def mean(self) -> Tensor:
        return _mean(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 * self.logits
        near = half.abs() < NEAR
        far = torch.where(near, 1.0, half)
        square = torch.where(near, half, 0.0).square()
        series = square * (1 / 3 - square * (7 / 90 - square * (62 / 2835 - square * 127 / 18900)))
        log_norm = math.log(2) + torch.where(
            near, series, (far / far.tanh()).log()
        )  # log C = log(l coth(l/2))
        return value * self.logits - F.softplus(self.logits) + log_norm

    def icdf(self, value: Tensor) -> Tensor:
        size = self.logits.abs()
        flat = size < 1e-6
        rate = torch.where(flat, 1.0, size)
        up = self.logits > 0  # 1 − x then has the law of −l
        u = torch.where(up, 1 - value, value)
        x = -torch.log1p(u * torch.expm1(-rate)) / rate
        return torch.where(flat, value, torch.where(up, 1 - x, x))


NEAR = 0.1
"""Below it the series in (l/2)², whose error is 1e-13, replace 0/0."""


def _mean(logits: Tensor) -> Tensor:
    """½ + ½ (coth(l/2) − 2/l)."""
    half = 0.5 * logits
    near = half.abs() < NEAR
    far = torch.where(near, 1.0, half)
    close = torch.where(near, half, 0.0)
    square = close.square()
    series = close * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
    return 0.5 + 0.5 * torch.where(near, series, 1 / far.tanh() - 1 / far)
