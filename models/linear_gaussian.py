"""Probabilistic PCA: the linear VAE, solved exactly."""

from __future__ import annotations

from typing import Any

import torch
from pyro import distributions as dist
from pyro_vae.models.gaussian import Gaussian
from pyro_vae.models.generative import GenerativeModel
from pyro_vae.models.standard_normal import StandardNormal
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.nn.mlp import MLP


class LinearGaussian(GenerativeModel):
    """z ~ N(0, I), x ~ N(Wz + b, σ²I): probabilistic PCA, solved exactly.

    log p(x), the posterior and the maximum likelihood are in closed form. It is a `GenerativeModel`
    with a ``StandardNormal`` prior and a ``Gaussian`` likelihood whose decoder is one linear layer.
    Its guide is ``ExactPosterior``. Any other guide works too: then ELBO and `log_px` show its gap
    exactly.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z; fewer than pixels for `fit_ml`.
        missing: ``"nan"`` if a NaN marks a missing pixel: all is then about the observed pixels.

    Raises:
        UserError: a size that is not a whole number of 1 or more, or an unknown network.

    Reference:
        Tipping and Bishop 1999, "Probabilistic Principal Component Analysis".
    """

    kind, observes = "density", "real"

    def __init__(
        self, event_shape: tuple[int, ...], latent_dim: int, missing: str | None = None
    ) -> None:
        decoder: dict[str, Any] = {"net": MLP, "hidden": (), "missing": missing}
        super().__init__(
            StandardNormal(latent_dim),
            Gaussian(event_shape, latent_dim, scale="learned", **decoder),
        )

    @property
    def weight(self) -> Tensor:
        """W, ``(D, latent_dim)``."""
        return self._linear.weight

    @property
    def bias(self) -> Tensor:
        """b, ``(D,)``."""
        return self._linear.bias

    @property
    def scale(self) -> Tensor:
        """σ, 0-dim."""
        return self._log_scale.exp()

    @property
    def _log_scale(self) -> Tensor:
        log_scale: Tensor = self.likelihood.log_scale  # type: ignore[assignment]
        return log_scale

    @property
    def _linear(self) -> nn.Linear:
        return next(module for module in self.likelihood.modules() if isinstance(module, nn.Linear))

    def log_px(self, x: Tensor) -> Tensor:
        """log N(x; b, WWᵀ + σ²I) of images, ``(B, *event_shape)``: ``(B,)``, nats, exact."""
        posterior = self.posterior(x)
        z = posterior.mean  # log p(x, z) − log p(z | x) is log p(x) at every z
        joint = self.likelihood(z).log_prob(x) + self.prior().log_prob(z)
        log_px: Tensor = joint - posterior.log_prob(z)
        return log_px

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """p(z | x) = N(M⁻¹Wᵀ(x − b), σ²M⁻¹), M = WᵀW + σ²I, batch shape ``(B,)``; of an image with
        missing entries with the rows of W and b of those that are seen.
        """
        weight, variance, centred = self.weight, self.scale.square(), x.flatten(1) - self.bias
        seen = ~centred.isnan() if self.likelihood.missing else torch.ones_like(self.bias)
        m = (weight.T * seen.unsqueeze(-2)) @ weight
        m = m + variance * torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
        # as cholesky, which reads an error code from the device
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(m)[0])
        to_z = torch.where(seen.bool(), centred, 0.0) @ weight
        loc = (to_z.unsqueeze(-2) @ inverse).squeeze(-2)
        return dist.MultivariateNormal(
            loc, scale_tril=torch.linalg.cholesky_ex(variance * inverse)[0]
        )

    @torch.no_grad()
    def fit_ml(self, x: Tensor) -> float:
        """Maximum likelihood in closed form, in place.

        With eigenvalues λ_1 ≥ … of the sample covariance: σ² is the mean of the D − L smallest, W =
        U (Λ − σ²I)^½, b is the mean.

        Args:
            x: images ``(N, *event_shape)``.

        Returns:
            The mean log p(x) of ``x``, in nats.

        Raises:
            UserError: as many latent dimensions as pixels, or data within ``latent_dim``
                dimensions: σ would be 0.

        Reference:
            Tipping and Bishop 1999, equations 7 and 8.
        """
        x = x.to(self.bias.device)
        rows = x.flatten(1).double()
        latent_dim = self.weight.shape[1]
        if latent_dim >= rows.shape[1]:
            raise UserError(
                f"LinearGaussian has {latent_dim} latent dimensions and {rows.shape[1]} pixels: "
                "give it fewer latent dimensions than pixels"
            )
        values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))  # ascending
        variance = values[:-latent_dim].mean()
        if not bool(variance > 1e-12 * values[-1]):
            raise UserError(
                f"the {len(x)} images vary in {latent_dim} dimensions or fewer. Then σ is 0 and "
                "the density has no upper bound: give more images, add noise (dequantize), or "
                "use fewer latent dimensions"
            )
        top = (values[-latent_dim:] - variance).sqrt() * vectors[:, -latent_dim:]
        self._linear.weight.copy_(top.flip(1))  # the largest component first
        self._linear.bias.copy_(rows.mean(0))
        self._log_scale.copy_(variance.log() / 2)
        return float(self.log_px(x.to(self.weight.dtype)).mean())
