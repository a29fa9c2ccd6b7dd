"""Inference models q(z | x): amortized guides, each an ordinary Pyro program."""

if __name__ != "pyro_vae.guides":
    raise ImportError(
        "import this package as `from pyro_vae import guides`; a bare `import guides` would make a second copy"
    )

from pyro_vae.guides.amortized import AmortizedGuide
from pyro_vae.guides.mean_field import MeanField

__all__ = ["AmortizedGuide", "MeanField"]
