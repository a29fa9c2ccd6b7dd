"""Variational auto-encoders as plain Pyro programs, with a log p(x) that can be defended.

The names below are loaded when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# no module has the name of a public function: once imported, it would stand in the function's place
_HOME = {
    "fit": "training.fit",
    "Diverged": "training.divergence",
    "History": "training.history",
    "Checkpoints": "training.checkpoints",
    "EarlyStopping": "training.callbacks",
    "EpochEnd": "training.callbacks",
    "TrainingState": "training.state",
    "log_marginal": "evaluation.importance",
    "LogMarginal": "evaluation.result",
    "log_weights": "pair.log_weights",
    "log_densities": "pair.log_weights",
    "ais": "evaluation.ais",
    "bdmc": "evaluation.bdmc",
    "refine": "evaluation.refine",
    "compare": "evaluation.compare",
    "diagnose": "analysis.diagnose",
    "sbc_ranks": "analysis.sbc",
    "check_pair": "pair.report",
    "parameters": "pair.parameters",
    "save_parameters": "pair.parameters",
    "load_parameters": "pair.parameters",
    "encode": "analysis.encode",
    "impute": "analysis.restoration",
    "denoise": "analysis.restoration",
    "reconstruct": "analysis.encode",
    "sample": "analysis.generate",
    "load": "runs.run_folder",
    "sweep": "runs.sweep",
    "Pair": "pair.runtime",
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
    "load_parameters",
    "log_densities",
    "log_marginal",
    "log_weights",
    "parameters",
    "reconstruct",
    "refine",
    "sample",
    "save_parameters",
    "sbc_ranks",
    "sweep",
]

if TYPE_CHECKING:
    __version__: str
    from pyro_vae.analysis.diagnose import diagnose
    from pyro_vae.analysis.encode import encode, reconstruct
    from pyro_vae.analysis.generate import sample
    from pyro_vae.analysis.restoration import denoise, impute
    from pyro_vae.analysis.sbc import sbc_ranks
    from pyro_vae.errors import UserError
    from pyro_vae.evaluation.ais import ais
    from pyro_vae.evaluation.bdmc import bdmc
    from pyro_vae.evaluation.compare import compare
    from pyro_vae.evaluation.importance import log_marginal
    from pyro_vae.evaluation.refine import refine
    from pyro_vae.evaluation.result import LogMarginal
    from pyro_vae.pair.log_weights import log_densities, log_weights
    from pyro_vae.pair.parameters import load_parameters, parameters, save_parameters
    from pyro_vae.pair.report import check_pair
    from pyro_vae.pair.runtime import Pair
    from pyro_vae.runs.run_folder import load
    from pyro_vae.runs.sweep import sweep
    from pyro_vae.training.callbacks import EarlyStopping, EpochEnd
    from pyro_vae.training.checkpoints import Checkpoints
    from pyro_vae.training.divergence import Diverged
    from pyro_vae.training.fit import fit
    from pyro_vae.training.history import History
    from pyro_vae.training.state import TrainingState


_NAMESPACES = ("data", "guides", "models", "objectives")


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":  # of what is installed: pyproject.toml alone writes it
        return import_module("importlib.metadata").version("pyro-vae")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMESPACES, "__version__"])
