"""Generative models p(z) p(x | z): Pyro programs and the conditional densities that they are made of."""

if __name__ != "pyro_vae.models":
    raise ImportError(
        "import this package as `from pyro_vae import models`; a bare `import models` would make a second copy"
    )

from pyro_vae.models.bernoulli import Bernoulli
from pyro_vae.models.gaussian import Gaussian
from pyro_vae.models.generative import GenerativeModel
from pyro_vae.models.standard_normal import StandardNormal

__all__ = ["Bernoulli", "Gaussian", "GenerativeModel", "StandardNormal"]
