"""Generative models p(z) p(x | z): Pyro programs and the conditional densities that they are made
of.
"""

if __name__ != "pyro_vae.models":
    raise ImportError(
        "import this package as `from pyro_vae import models`: `import models` would make a "
        "second copy of it"
    )

from pyro_vae.models.bernoulli import Bernoulli as Bernoulli
from pyro_vae.models.binomial import Binomial as Binomial
from pyro_vae.models.categorical import Categorical as Categorical
from pyro_vae.models.class_conditional import ClassConditional as ClassConditional
from pyro_vae.models.continuous_bernoulli import ContinuousBernoulli as ContinuousBernoulli
from pyro_vae.models.discretized_logistic import DiscretizedLogistic as DiscretizedLogistic
from pyro_vae.models.flow_prior import FlowPrior as FlowPrior
from pyro_vae.models.gaussian import Gaussian as Gaussian
from pyro_vae.models.gaussian_mixture import GaussianMixture as GaussianMixture
from pyro_vae.models.generative import GenerativeModel as GenerativeModel
from pyro_vae.models.hierarchical import Hierarchical as Hierarchical
from pyro_vae.models.linear_gaussian import LinearGaussian as LinearGaussian
from pyro_vae.models.mixture_of_gaussians import MixtureOfGaussians as MixtureOfGaussians
from pyro_vae.models.negative_binomial import NegativeBinomial as NegativeBinomial
from pyro_vae.models.poisson import Poisson as Poisson
from pyro_vae.models.semi_supervised import SemiSupervised as SemiSupervised
from pyro_vae.models.standard_normal import StandardNormal as StandardNormal
from pyro_vae.models.student_t import StudentT as StudentT
from pyro_vae.models.vamp_prior import VampPrior as VampPrior

__all__ = [name for name, part in globals().items() if isinstance(part, type)]
