"""The commands by name, each with the dataclass of its options; free of torch."""

from __future__ import annotations

from typing import Any

from pyro_vae.runs.options import (
    Audit,
    Bench,
    Compare,
    Evaluate,
    List,
    Plot,
    Sample,
    Train,
)
from pyro_vae.runs.sweep_options import Sweep

COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "sweep": Sweep,
    "evaluate": Evaluate,
    "audit": Audit,
    "compare": Compare,
    "sample": Sample,
    "plot": Plot,
    "list": List,
    "bench": Bench,
}

DIVIDED = (Train, Evaluate)
"""Commands that torchrun's processes share; of any other, the first process alone runs."""
