"""`pyro-vae bench`: the benchmark suites of the repository, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyro_vae.errors import UserError
from pyro_vae.runs.options import SUITES, Bench
from pyro_vae.signals import MISTAKEN, Failure

_FILES = {"training": "training_step"}  # where a suite's file has another name


def run(options: Bench) -> dict[str, Any]:
    """Run the suites; their results, by suite and case.

    Raises:
        UserError: there is no benchmarks folder, as in a package that was not installed from a
            checkout.
        SystemExit: a suite refused its options, in its own line.
        Failure: a suite failed; what it said is above.
    """
    folder = find_benchmarks()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        # with --quick nothing is kept, but --json still wants the figures
        out = (options.out or Path(scratch if options.quick else "runs/bench")).resolve()
        for suite in options.suites or SUITES:
            file = _FILES.get(suite, suite)
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                f"benchmarks.{file}",
                *_arguments(options, out),
            ]
            shown = sys.stderr if options.json else None
            environment = _environment(options)
            code = subprocess.run(
                command, check=False, cwd=folder.parent, env=environment, stdout=shown
            ).returncode
            if code == MISTAKEN:  # its line says what
                raise SystemExit(code)
            if code:
                raise Failure(f"the suite {suite} failed: see above")
            written = out / f"{file}{'_cuda' if options.device == 'cuda' else ''}.json"
            results[suite] = json.loads(
                (written if written.exists() else out / f"{file}.json").read_text()
            )
    for name in ("numpyro", "pythae"):
        if find_spec(name) is None:
            print(
                f"{name} is not installed and was left out (pip install 'pyro-vae[bench]')",
                file=sys.stderr,
            )
    return results


def find_benchmarks() -> Path:
    """The folder next to the package that this very code belongs to."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    if not (folder / "harness.py").exists():
        raise UserError(
            "the benchmarks are not part of the installed package: clone the repository, and "
            "there run pip install -e '.[bench]' and pyro-vae bench"
        )
    return folder


def _arguments(options: Bench, out: Path) -> list[str]:
    rounds = [] if options.rounds is None else ["--rounds", str(options.rounds)]
    quick = ["--quick"] if options.quick else []
    return [*options.only, *rounds, *quick, "--device", options.device, "--out", str(out)]


def _environment(options: Bench) -> dict[str, str]:
    threads = {} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)}
    return {**os.environ, **threads}
