"""Inference models q(z | x): amortized guides, each an ordinary Pyro program."""

if __name__ != "pyro_vae.guides":
    raise ImportError(
        "import this package as `from pyro_vae import guides`; a bare `import guides` would make "
        "a second copy"
    )

from pyro_vae.guides.amortized import AmortizedGuide
from pyro_vae.guides.bottom_up import BottomUp
from pyro_vae.guides.class_conditional import ClassConditional
from pyro_vae.guides.empty import Empty
from pyro_vae.guides.exact_posterior import ExactPosterior
from pyro_vae.guides.full_rank import FullRank
from pyro_vae.guides.householder import Householder
from pyro_vae.guides.iaf import IAF
from pyro_vae.guides.low_rank import LowRank
from pyro_vae.guides.mean_field import MeanField
from pyro_vae.guides.mixture_of_gaussians import MixtureOfGaussians
from pyro_vae.guides.nsf import NSF
from pyro_vae.guides.per_datum import PerDatum
from pyro_vae.guides.planar import Planar
from pyro_vae.guides.point_estimate import PointEstimate
from pyro_vae.guides.semi_amortized import SemiAmortized
from pyro_vae.guides.semi_supervised import SemiSupervised
from pyro_vae.guides.top_down import TopDown

__all__ = [
    "IAF",
    "NSF",
    "AmortizedGuide",
    "BottomUp",
    "ClassConditional",
    "Empty",
    "ExactPosterior",
    "FullRank",
    "Householder",
    "LowRank",
    "MeanField",
    "MixtureOfGaussians",
    "PerDatum",
    "Planar",
    "PointEstimate",
    "SemiAmortized",
    "SemiSupervised",
    "TopDown",
]
