"""The checks that wait for a GPU run here, on the CPU, to their verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_checks import CHECKS, Setting, one

ON_CPU = Setting("cpu", quick=True)


@pytest.mark.parametrize("name", ["captured", "second_device"])
def test_a_check_runs_on_the_cpu(name: str) -> None:
    fine, figures = one(CHECKS[name][0], ON_CPU)
    assert fine, figures


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["layouts", "cpu_and_gpu", "resumed", "memory", "larger_than_the_device"]
)
def test_a_longer_check_runs_on_the_cpu(name: str) -> None:
    fine, figures = one(CHECKS[name][0], ON_CPU)
    assert fine, figures


def test_a_check_that_breaks_is_a_failed_one() -> None:
    def broken(on: Setting) -> tuple[bool, dict[str, object]]:
        raise RuntimeError("CUDA error")

    fine, figures = one(broken, ON_CPU)
    assert not fine and figures["error"] == "RuntimeError: CUDA error"


@pytest.mark.slow
def test_the_script_writes_its_results_after_each_check(tmp_path: Path) -> None:
    out = tmp_path / "checks.json"
    command = [sys.executable, "-m", "benchmarks.gpu_checks", "captured", "second_device"]
    subprocess.run(
        [*command, "--device", "cpu", "--quick", "--out", str(out)],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    rows = json.loads(out.read_text())["checks"]
    assert [row["check"] for row in rows] == ["captured", "second_device"]
    assert {row["verdict"] for row in rows} == {"ok"}
