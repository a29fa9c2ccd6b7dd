"""Inference models q(z | x): amortized guides, each an ordinary Pyro program."""

if __name__ != "pyro_vae.guides":
    raise ImportError(
        "import this package as `from pyro_vae import guides`: `import guides` would make a "
        "second copy of it"
    )

from pyro_vae.guides.amortized import AmortizedGuide as AmortizedGuide
from pyro_vae.guides.bottom_up import BottomUp as BottomUp
from pyro_vae.guides.class_conditional import ClassConditional as ClassConditional
from pyro_vae.guides.empty import Empty as Empty
from pyro_vae.guides.exact_posterior import ExactPosterior as ExactPosterior
from pyro_vae.guides.full_rank import FullRank as FullRank
from pyro_vae.guides.householder import Householder as Householder
from pyro_vae.guides.iaf import IAF as IAF
from pyro_vae.guides.low_rank import LowRank as LowRank
from pyro_vae.guides.mean_field import MeanField as MeanField
from pyro_vae.guides.mixture_of_gaussians import MixtureOfGaussians as MixtureOfGaussians
from pyro_vae.guides.nsf import NSF as NSF
from pyro_vae.guides.per_datum import PerDatum as PerDatum
from pyro_vae.guides.planar import Planar as Planar
from pyro_vae.guides.point_estimate import PointEstimate as PointEstimate
from pyro_vae.guides.semi_amortized import SemiAmortized as SemiAmortized
from pyro_vae.guides.semi_supervised import SemiSupervised as SemiSupervised
from pyro_vae.guides.top_down import TopDown as TopDown

__all__ = [name for name, part in globals().items() if isinstance(part, type)]
