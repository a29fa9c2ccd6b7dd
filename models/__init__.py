"""Generative models p(z) p(x | z): Pyro programs and the conditional densities that they are made
of.
"""

if __name__ != "pyro_vae.models":
    raise ImportError(
        "import this package as `from pyro_vae import models`; a bare `import models` would make "
        "a second copy"
    )

from pyro_vae.models.bernoulli import Bernoulli
from pyro_vae.models.binomial import Binomial
from pyro_vae.models.categorical import Categorical
from pyro_vae.models.class_conditional import ClassConditional
from pyro_vae.models.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.models.discretized_logistic import DiscretizedLogistic
from pyro_vae.models.flow_prior import FlowPrior
from pyro_vae.models.gaussian import Gaussian
from pyro_vae.models.gaussian_mixture import GaussianMixture
from pyro_vae.models.generative import GenerativeModel
from pyro_vae.models.hierarchical import Hierarchical
from pyro_vae.models.linear_gaussian import LinearGaussian
from pyro_vae.models.mixture_of_gaussians import MixtureOfGaussians
from pyro_vae.models.negative_binomial import NegativeBinomial
from pyro_vae.models.poisson import Poisson
from pyro_vae.models.semi_supervised import SemiSupervised
from pyro_vae.models.standard_normal import StandardNormal
from pyro_vae.models.student_t import StudentT
from pyro_vae.models.vamp_prior import VampPrior

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "ClassConditional",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FlowPrior",
    "Gaussian",
    "GaussianMixture",
    "GenerativeModel",
    "Hierarchical",
    "LinearGaussian",
    "MixtureOfGaussians",
    "NegativeBinomial",
    "Poisson",
    "SemiSupervised",
    "StandardNormal",
    "StudentT",
    "VampPrior",
]
