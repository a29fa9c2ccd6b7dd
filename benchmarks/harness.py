"""Contestants timed in turn, A B C A B C …: ratios survive a machine whose speed drifts."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from benchmarks.team import Team
from pyro_vae.errors import UserError, did_you_mean

RESULTS = Path("runs/bench")
"""Where results go unless the caller names another folder: the committed figures are written on
request alone.
"""

T = TypeVar("T")
Table = dict[str, dict[str, Any]]
MOST_ROUNDS = 3
"""Times the rounds asked for, where the machine's cores keep lying apart."""


@dataclass(frozen=True)
class Options:
    """What the suites take on their command lines."""

    only: tyro.conf.Positional[tuple[str, ...]] = ()
    """Cases of the suite, such as "iwae b20"; by default all."""
    rounds: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How often every contestant has its turn."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the torch contestants run."""
    quick: bool = False
    """Two short rounds: whether everything runs, and no figures to keep."""
    out: Path | None = None
    """Where the JSON goes; by default runs/bench, and nowhere with --quick."""

    @property
    def folder(self) -> Path | None:
        """Where the JSON goes."""
        return self.out or (None if self.quick else RESULTS)


def run_cli(main: Callable[[T], None], options: type[T], description: str | None) -> None:
    """Read the command line into ``options`` and run it; a mistake of the caller's is one line and
    exit code 2.
    """
    spec = sys.modules["__main__"].__spec__
    prog = f"python -m {spec.name}" if spec else None  # as it is started: by its path it can't be
    pairs_off = (tyro.conf.FlagCreatePairsOff,)
    try:
        main(tyro.cli(options, prog=prog, description=description or "", config=pairs_off))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def chosen(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The cases asked for, or all, once they are known; then the machine is printed."""
    every = list(known)
    for name in names:
        if name not in every:
            raise UserError(did_you_mean("case", name, every))
    print(machine(), flush=True)
    return list(names) or every


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, one figure a round."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """The figure to quote, beside its range."""
        return statistics.median(self.seconds)


def interleave(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Run all contestants in turn, ``rounds`` times; one that returns a float has timed itself, in
    seconds.

    A round in which the machine's cores lay apart is repeated; where most of the repeated ones are
    no better, all count.
    """
    team, times, regions = Team(), [], []

    def close() -> list[list[float]]:
        return [each for each, region in zip(times, regions, strict=True) if team.close(region)]

    for turn in range(warmup + MOST_ROUNDS * rounds):
        taken = [team.turn(lambda run=run: _seconds(run)) for run in contestants.values()]
        if turn >= warmup:
            times.append([seconds for seconds, _ in taken])
            regions.append(max(region for _, region in taken))
        if len(close()) >= rounds:
            break
    kept = close() if 2 * len(close()) >= rounds else times
    if len(close()) < len(times):
        print(
            f"cores apart in {len(times) - len(close())} of {len(times)} rounds, {len(kept)} kept",
            flush=True,
        )
    return {
        name: Timing(name, list(seconds))
        for name, seconds in zip(contestants, zip(*kept, strict=True), strict=True)
    }


def _seconds(run: Callable[[], Any]) -> float:
    synchronize()
    started = time.perf_counter()
    own = run()
    synchronize()
    return own if isinstance(own, float) else time.perf_counter() - started


def repeated(step: Callable[[], Any], times: int) -> Callable[[], None]:
    """A round: enough steps to be timed; the last result is waited for, as some contestants are
    asynchronous.
    """

    def work() -> None:
        value: Any = 0.0
        with around(step):
            for _ in range(times):
                value = step()
            float(value)

    return work


def around(step: Callable[[], Any]) -> AbstractContextManager[Any]:
    """What a contestant enters once for many steps, as its own loop does once an epoch; most enter
    nothing.
    """
    context: AbstractContextManager[Any] = getattr(step, "around", nullcontext)()
    return context


def ratios(timings: Mapping[str, Timing], base: str) -> Table:
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


def assert_alike(found: Mapping[str, float], base: str, noise: float) -> None:
    """All contestants do the same work: their results are those of ``base`` but for the noise."""
    apart = {
        name: value - found[base]
        for name, value in found.items()
        if not abs(value - found[base]) <= noise
    }
    assert not apart, f"not within {noise:.3g} of {base}, {found[base]:.3f}: {apart}"


def report(title: str, table: Table, base: str, unit: float = 1e3) -> None:
    """The table on the terminal; ``seconds`` times ``unit`` is shown."""
    print(f"\n{title} (ratio to {base}: median, range)")
    for name, row in table.items():
        print(
            f"  {name:<38} {row['median']:6.3f}  [{row['least']:.3f}, {row['most']:.3f}]  "
            f"{row['seconds'] * unit:9.3f} ms",
            flush=True,
        )


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("pyro-ppl", "numpyro", "jax", "pythae")
    return {
        "torch": torch.__version__,
        **{name: version for name in packages if (version := _version(name))},
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def write(name: str, tables: dict[str, Any], folder: Path | None) -> Path | None:
    """The figures as JSON, with the machine in words; cases measured earlier on the same machine
    are kept.
    """
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    if held.get("machine") != machine():
        held = {}
    path.write_text(json.dumps({**held, "machine": machine(), **tables}, indent=1) + "\n")
    return path


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
