"""Variational auto-encoders as plain Pyro programs, with a log p(x) that can be defended.

The names below are loaded when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# no module has the name of a public function: once imported, it would stand in the function's place
_HOME = {
    "fit": "training",
    "Diverged": "divergence",
    "History": "history",
    "Checkpoints": "keeping",
    "EarlyStopping": "callbacks",
    "EpochEnd": "callbacks",
    "TrainingState": "training_state",
    "log_marginal": "importance",
    "LogMarginal": "marginal",
    "log_weights": "weights",
    "log_densities": "weights",
    "ais": "annealed",
    "bdmc": "bidirectional",
    "refine": "refinement",
    "compare": "comparison",
    "diagnose": "diagnostics",
    "sbc_ranks": "sbc",
    "check_pair": "check",
    "encode": "representation",
    "impute": "imputation",
    "denoise": "denoising",
    "reconstruct": "representation",
    "sample": "representation",
    "load": "runs",
    "Pair": "pair",
    "UserError": "errors",
}

__all__ = [
    "Checkpoints",
    "Diverged",
    "EarlyStopping",
    "EpochEnd",
    "History",
    "LogMarginal",
    "Pair",
    "TrainingState",
    "UserError",
    "ais",
    "bdmc",
    "check_pair",
    "compare",
    "denoise",
    "diagnose",
    "encode",
    "fit",
    "impute",
    "load",
    "log_densities",
    "log_marginal",
    "log_weights",
    "reconstruct",
    "refine",
    "sample",
    "sbc_ranks",
]

if TYPE_CHECKING:
    from pyro_vae.annealed import ais
    from pyro_vae.bidirectional import bdmc
    from pyro_vae.callbacks import EarlyStopping, EpochEnd
    from pyro_vae.check import check_pair
    from pyro_vae.comparison import compare
    from pyro_vae.denoising import denoise
    from pyro_vae.diagnostics import diagnose
    from pyro_vae.divergence import Diverged
    from pyro_vae.errors import UserError
    from pyro_vae.history import History
    from pyro_vae.importance import log_marginal
    from pyro_vae.imputation import impute
    from pyro_vae.keeping import Checkpoints
    from pyro_vae.marginal import LogMarginal
    from pyro_vae.pair import Pair
    from pyro_vae.refinement import refine
    from pyro_vae.representation import encode, reconstruct, sample
    from pyro_vae.runs import load
    from pyro_vae.sbc import sbc_ranks
    from pyro_vae.training import fit
    from pyro_vae.training_state import TrainingState
    from pyro_vae.weights import log_densities, log_weights


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
