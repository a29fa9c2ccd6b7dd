"""The commands, each with the class of its options."""

from __future__ import annotations

from typing import Any

from pyro_vae.runs.options import Audit, Bench, Compare, Evaluate, List, Plot, Sample, Train

COMMANDS: dict[str, type[Any]] = {
    kind.command: kind for kind in (Train, Evaluate, Audit, Compare, Sample, Plot, List, Bench)
}

DIVIDED = (Train, Evaluate)
"""Commands that torchrun's processes share; of any other, the first process alone runs."""
