"""The examples run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[1] / "examples" / "train.py"


def test_the_training_script_is_short_and_plain() -> None:
    """One pass to read: stock SVI, one of our objectives, and log p(x) at the end."""
    lines = TRAIN.read_text().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    calls = [
        line
        for line in lines
        if "pyro.infer.SVI(" in line or "pv.log_marginal(" in line or "svi.step(" in line
    ]
    assert len(calls) == 3


@pytest.mark.slow
def test_the_training_script_prints_log_px(tmp_path: Path) -> None:
    """From a folder that knows nothing of the repository; 1500 steps gave −22.84 for the binarized
    digits.
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", str(TRAIN), "--steps", "1500", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^step 1500: loss \d+\.\d\d nats an image$", run.stdout, re.MULTILINE)
    found = re.search(
        r"^log p\(x\) ≥ −(\d+\.\d+) nats \(IW-1000, N = 359\)", run.stdout, re.MULTILINE
    )
    assert found is not None and 22.2 < float(found[1]) < 23.5
    assert not list(tmp_path.iterdir())
