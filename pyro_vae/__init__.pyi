"""The public names and their homes: read by type checkers, and by `pyro_vae.lazy` as it runs."""

from pyro_vae import data as data
from pyro_vae import guides as guides
from pyro_vae import models as models
from pyro_vae import objectives as objectives
from pyro_vae.analysis.diagnose import diagnose as diagnose
from pyro_vae.analysis.encode import encode as encode
from pyro_vae.analysis.encode import reconstruct as reconstruct
from pyro_vae.analysis.generate import sample as sample
from pyro_vae.analysis.restoration import denoise as denoise
from pyro_vae.analysis.restoration import impute as impute
from pyro_vae.analysis.sbc import sbc_ranks as sbc_ranks
from pyro_vae.errors import UserError as UserError
from pyro_vae.evaluation.ais import ais as ais
from pyro_vae.evaluation.bdmc import bdmc as bdmc
from pyro_vae.evaluation.compare import compare as compare
from pyro_vae.evaluation.importance import log_marginal as log_marginal
from pyro_vae.evaluation.refine import refine as refine
from pyro_vae.evaluation.result import LogMarginal as LogMarginal
from pyro_vae.pair.log_weights import check_pair as check_pair
from pyro_vae.pair.log_weights import log_densities as log_densities
from pyro_vae.pair.log_weights import log_weights as log_weights
from pyro_vae.pair.parameters import load_parameters as load_parameters
from pyro_vae.pair.parameters import parameters as parameters
from pyro_vae.pair.parameters import save_parameters as save_parameters
from pyro_vae.pair.runtime import Pair as Pair
from pyro_vae.runs.run_folder import load as load
from pyro_vae.runs.sweep import sweep as sweep
from pyro_vae.training.callbacks import EarlyStopping as EarlyStopping
from pyro_vae.training.callbacks import EpochEnd as EpochEnd
from pyro_vae.training.checkpoints import Checkpoints as Checkpoints
from pyro_vae.training.divergence import Diverged as Diverged
from pyro_vae.training.fit import fit as fit
from pyro_vae.training.history import History as History
from pyro_vae.training.state import TrainingState as TrainingState

__version__: str
