"""Peak memory of ``log_marginal`` by the number of draws: an MNIST-sized model, four images, each K in a process of its own.

python benchmarks/memory.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

import torch
from architectures import ARCHITECTURES
from harness import write

from pyro_vae import log_marginal

DRAWS = [500, 1000, 20_000, 100_000]
PROPOSALS = ["guide", "Defensive"]


def peak() -> float:
    """The largest resident set of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_samples: int, proposal: str) -> dict[str, Any]:
    """One evaluation in this process: the peak before it, after torch, Pyro and the model are loaded, and the peak after it."""
    torch.set_num_threads(1)
    at = ARCHITECTURES["mlp400 b128"]
    model, guide = at.pair()
    x = at.images(4)
    log_marginal(
        model, guide, x, num_samples=10, device="cpu", compile="graph", proposal=proposal
    )  # imports, first use
    before = peak()
    log_marginal(model, guide, x, num_samples=num_samples, device="cpu", compile="graph", proposal=proposal)
    return {"num_samples": num_samples, "proposal": proposal, "before_mib": before, "peak_mib": peak()}


def main() -> None:
    """Measure in child processes, print, and write results/memory.json."""
    found: dict[str, Any] = {}
    for proposal in PROPOSALS:
        table = []
        for k in DRAWS:
            child = [sys.executable, __file__, "--child", str(k), proposal]
            row = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            table.append(row)
            own = row["peak_mib"] - row["before_mib"]
            print(
                f"{proposal:<9} K = {k:>6}  peak {row['peak_mib']:.0f} MiB, of the evaluation {own:.0f} MiB", flush=True
            )
        by_draws = {row["num_samples"]: row for row in table}
        found[proposal] = {
            "rows": table,
            "ratio_100000_to_1000": by_draws[100_000]["peak_mib"] / by_draws[1000]["peak_mib"],
            "growth_500_to_20000_mib": by_draws[20_000]["peak_mib"] - by_draws[500]["peak_mib"],
        }
        print(
            f"{proposal:<9} K = 100 000 over K = 1000: {found[proposal]['ratio_100000_to_1000']:.3f}; "
            f"K = 500 to 20 000: {found[proposal]['growth_500_to_20000_mib']:+.1f} MiB",
            flush=True,
        )
    write("memory", found)


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(measure(int(sys.argv[-2]), sys.argv[-1])))
    else:
        main()
