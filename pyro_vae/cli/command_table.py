"""The table of commands, each with the dataclass of its options; it imports no torch."""

from __future__ import annotations

from typing import Any

from pyro_vae.runs.command_options import Audit, Compare, Evaluate, List, Plot, Runs, Sample
from pyro_vae.runs.options import Bench, Train
from pyro_vae.runs.sweep_options import Sweep

COMMANDS: dict[str, type[Any]] = {
    kind.command: kind
    for kind in (Train, Sweep, Evaluate, Audit, Compare, Sample, Plot, Runs, List, Bench)
}

DIVIDED = (Train, Evaluate)
"""Commands that torchrun's processes share; of any other, the first process alone runs."""
