"""What a training step or a chunk of draws frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

PAIR = """
import torch, pyro_vae as pv
from pyro_vae import guides, models
model, guide = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(2, (4, 4))), guides.MeanField((4, 4), 2)
x = torch.ones(10, 4, 4)
"""

KEEPING = {
    "alone": "from pyro_vae.memory import keep_freed_memory; keep_freed_memory()",
    "a training": PAIR + "pv.fit(model, guide, x, num_epochs=1, progress=False, compile='off')",
    "an evaluation": PAIR + "pv.log_marginal(model, guide, x, num_samples=10, compile='graph')",
}

COUNT = """
import resource, torch
torch.set_num_threads(1)

def chunk(number):
    blocks = [torch.ones(12_000_000 // number) for _ in range(number)]
    del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

asked = 0
for number in (80, 40, 20, 10, 5):
    for _ in range(3):
        chunk(number)
    rounds = []  # the least of three: a system that reclaims cold pages takes a block now and then
    for _ in range(3):
        before = faults()
        for _ in range(20):
            chunk(number)
        rounds.append(faults() - before)
    asked += min(rounds)
print(asked)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="glibc's allocator is meant, and this is another C library",
)
@pytest.mark.parametrize(
    "by",
    [
        "alone",
        *(pytest.param(by, marks=pytest.mark.slow) for by in ("a training", "an evaluation")),
    ],
)
def test_repeated_chunks_ask_the_system_for_no_new_pages(by: str) -> None:
    """A page that was given back is cleared and mapped again: a fault, of which these 100 chunks
    took 250 000 here.
    """
    # a threshold that is set by hand stays where it is (mallopt(3)): that is its setter's wish
    free = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", KEEPING[by] + COUNT],
        capture_output=True,
        text=True,
        check=True,
        env=free,
    )
    assert int(ran.stdout) < 1000
