"""The Gaussian likelihood of real-valued pixels."""

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.nn.location_scale import LocationScale


class Gaussian(LocationScale):
    """x_d | z ~ N(μ_d(z), σ²): pixels as real numbers (AEVB, appendix C.2).

    ``scale`` is a number (1.0 is the textbook N(x; x̂, I)), ``learned`` (one σ, shared by all
    pixels) or ``per_pixel`` (σ_d(z), a second output of the decoder). ``mean="sigmoid"`` holds μ in
    (0, 1), as AEVB does for the Frey faces. ``min_scale`` is added to a per-pixel σ, without which
    a pixel that never varies has an unbounded density.
    """

    def law(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """N(μ, σ²)."""
        return dist.Normal(location, scale)
