"""Memory that runs out in an evaluation: a real process with a real limit on its address space."""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="reads /proc, and limits the address space as Linux does",
)
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
