"""Memory that runs out: a real process with a real limit on its address space."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.children import QUICK, Child, checkpoints, done, little_memory

CHILD = """
import resource, torch
import pyro_vae as pv
from pyro_vae import guides, models

torch.set_num_threads(1)
torch.manual_seed(0)
shape, net = (1, 64, 64), {"hidden": (4,)}
model = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(2, shape, **net))
guide = guides.MeanField(shape, 2, **net)
x = (torch.rand(40, *shape) < 0.5).float()
str(pv.log_marginal(model, guide, x[:1], num_samples=100, compile="off"))  # all is imported before the limit
sizes = dict(line.split(":") for line in open("/proc/self/status"))
limit = int(sizes["VmSize"].split()[0]) * 1024 + 256 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
held = []  # all but 24 MiB: a run of 50 draws of 40 images of 64 x 64 pixels takes 31 for each tensor
try:
    while True:
        held.append(torch.empty(2**18))
except RuntimeError:
    del held[-24:]
print(pv.log_marginal(model, guide, x, num_samples=500, compile="off"))
"""


limited = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="reads /proc, and limits the address space as Linux does",
)


@limited
def test_an_evaluation_that_its_memory_does_not_hold_goes_on_in_smaller_tiles() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # each thread reserves addresses of its own
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("log p(x) ≥") and "out of memory with 2000 rows" in done.stdout


@limited
def test_a_training_that_its_memory_does_not_hold_loses_nothing(tmp_path: Path) -> None:
    """8.5 MB of parameters, four times that in a step, and a copy of it in a checkpoint."""
    train = ["train", *QUICK, "--net", "MLP(hidden=(1000,1000))", "--checkpoint-minutes", "0"]
    first = Child(tmp_path, [*train, "--steps", "100000", "--out", "run"])
    first.until(lambda: len(checkpoints(tmp_path / "run")) == 2)
    first.kill()
    folder = tmp_path / "run" / "checkpoints"
    kept = {name: (folder / name).read_bytes() for name in checkpoints(tmp_path / "run")}
    second = done(tmp_path, ["train", "--resume", "run", "--quiet"], little_memory)
    assert second.wait() == 1
    line = second.error.splitlines()[-1]
    assert "does not fit into the memory" in line, second.error
    assert "Traceback" not in second.error
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == kept
    score = ["evaluate", "run", "--num-samples", "5", "--num-images", "5", "--no-pictures"]
    assert done(tmp_path, [*score, "--quiet"]).wait() == 0
