"""The Gaussian likelihood of real-valued pixels."""

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.location_scale import LocationScale


class Gaussian(LocationScale):
    """x_d | z ~ N(μ_d(z), σ²): pixels as real numbers (AEVB, appendix C.2).

    ``scale`` is a number (1.0 is the textbook N(x; x̂, I)), ``learned`` (one σ, shared by all
    pixels), ``per_pixel`` (σ_d(z), a second output of the decoder) or ``per_image``, N(x; f_μ(z),
    f_σ(z)² I), f_σ being of that output's mean over the pixels. ``mean="sigmoid"`` holds μ in (0,
    1), as AEVB does for the Frey faces, ``"tanh"`` in (−1, 1). ``min_scale`` is added to a σ of z,
    without which a pixel that never varies has an unbounded density.
    """

    def law(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """N(μ, σ²)."""
        return dist.Normal(location, scale)
