"""What a replayed graph frees is there for its next run."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from pyro_vae.freed_memory import keep_freed_memory

torch.set_num_threads(1)
keep_freed_memory()

def chunk(number):
    blocks = [torch.ones(12_000_000 // number) for _ in range(number)]
    del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

asked = 0
for number in (80, 40, 20, 10, 5):
    for _ in range(3):
        chunk(number)
    before = faults()
    for _ in range(20):
        chunk(number)
    asked += faults() - before
print(asked)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant, and this is another C library"
)
def test_repeated_chunks_ask_the_system_for_no_new_pages() -> None:
    """A page that was given back is cleared and mapped again: a fault, of which these 100 chunks took 250 000 here."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1000
