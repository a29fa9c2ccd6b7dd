"""Objectives: what is maximised, by name; each says its bound as a formula, in nats for each image."""

from __future__ import annotations

from pyro_vae.objectives.base import Estimate, Loss, Objective
from pyro_vae.objectives.elbo import FreeBits, Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.objectives.multi_sample import CIWAE, IWAE, MIWAE, RenyiELBO
from pyro_vae.objectives.path_derivatives import STL, DReG
from pyro_vae.objectives.pyro_elbo import adopt  # noqa: F401  # what the registry makes of an object that is given for a name

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "STL",
    "DReG",
    "Estimate",
    "FreeBits",
    "Loss",
    "Objective",
    "RenyiELBO",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
]
