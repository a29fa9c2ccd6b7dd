"""Contestants timed in turn, A B C A B C …, in one process: ratios survive a machine whose speed drifts."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, one figure a round."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """The figure to quote, beside its range."""
        return statistics.median(self.seconds)


def interleave(contestants: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Run all contestants in turn, ``rounds`` times; each call is one round's work."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, run in contestants.items():
            _synchronize()
            started = time.perf_counter()
            run()
            _synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - started)
    return {name: Timing(name, seconds) for name, seconds in times.items()}


def ratios(timings: dict[str, Timing], base: str) -> dict[str, dict[str, float]]:
    """Each contestant over ``base``, round by round: median and range."""
    table = {}
    for name, timing in timings.items():
        pairs = [a / b for a, b in zip(timing.seconds, timings[base].seconds, strict=True)]
        table[name] = {
            "median": statistics.median(pairs),
            "least": min(pairs),
            "most": max(pairs),
            "seconds": timing.median,
        }
    return table


def report(title: str, table: dict[str, dict[str, float]], base: str, unit: float = 1e3) -> None:
    """The table on the terminal; ``seconds`` times ``unit`` is shown."""
    print(f"\n{title} (ratio to {base}: median, range)")
    for name, row in table.items():
        print(
            f"  {name:<38} {row['median']:6.3f}  [{row['least']:.3f}, {row['most']:.3f}]  {row['seconds'] * unit:9.3f} ms"
        )


def write(name: str, tables: dict[str, Any]) -> Path:
    """The figures as JSON, with the machine in words."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **tables}, indent=1) + "\n")
    return path


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
