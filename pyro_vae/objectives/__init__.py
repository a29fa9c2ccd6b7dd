"""Objectives: what SVI maximises, each with its bound as a formula, in nats."""

from __future__ import annotations

from pyro_vae.objectives.base import Estimate as Estimate
from pyro_vae.objectives.base import Loss as Loss
from pyro_vae.objectives.base import Objective as Objective
from pyro_vae.objectives.elbo import FreeBits as FreeBits
from pyro_vae.objectives.elbo import Trace_ELBO as Trace_ELBO
from pyro_vae.objectives.elbo import TraceMeanField_ELBO as TraceMeanField_ELBO
from pyro_vae.objectives.multi_sample import CIWAE as CIWAE
from pyro_vae.objectives.multi_sample import IWAE as IWAE
from pyro_vae.objectives.multi_sample import MIWAE as MIWAE
from pyro_vae.objectives.multi_sample import RenyiELBO as RenyiELBO
from pyro_vae.objectives.path_derivatives import STL as STL
from pyro_vae.objectives.path_derivatives import DReG as DReG
from pyro_vae.objectives.pyro_elbo import adopt as adopt  # what the registry makes of an object

__all__ = [name for name, part in globals().items() if isinstance(part, type)]
