"""Memory of `log_marginal` by the number of draws, each K in a process of its own on an MNIST-sized
model; host reads of an epoch.

python -m benchmarks.memory [guide] [Defensive] [RenyiELBO] [reads]

The peak of what the allocator gave out is counted by torch's profiler; the resident set, which the
system counts, is beside it. Images are as many as fill a tile at the smallest K, so that the tiles
of all K are of one size.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.architectures import ARCHITECTURES
from benchmarks.contestants import ours, pyro_svi
from benchmarks.harness import Options, chosen, run_cli, write
from benchmarks.host_reads import reads_per_epoch
from pyro_vae import log_marginal
from pyro_vae.evaluation.tiling import ROWS, tile_sizes

DRAWS = [500, 5000, 20_000]
CASES = ["guide", "Defensive", "RenyiELBO", "reads"]
MIB = 2.0**20


def peak_resident() -> float:
    """The largest resident set of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_allocated(work: Callable[[], Any]) -> float:
    """The most tensor memory that was in use at once, beyond what was there before, in MiB."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        work()
    held, most = 0, 0
    changes = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / MIB


def measure(num_samples: int, estimator: str) -> dict[str, Any]:
    """One evaluation in this process: the resident peak before it, with torch, Pyro and the model
    loaded, and after it.
    """
    at = ARCHITECTURES["mlp400 b128"]
    model, guide = at.pair()
    images = at.images(max(4, tile_sizes(num_samples, ROWS["cpu"])[1]))  # a full tile

    def score(draws: int) -> None:
        if estimator == "RenyiELBO":
            pyro_svi.renyi_log_px(
                guide.net.layers, model.likelihood.net.layers, images[:1], draws, chunk=draws
            )
            return
        log_marginal(
            model,
            guide,
            images,
            num_samples=draws,
            device="cpu",
            compile="graph",
            proposal=estimator,
        )

    score(10)  # imports, first use
    score(min(DRAWS))
    before = peak_resident()
    score(num_samples)
    after = peak_resident()
    return {
        "num_samples": num_samples,
        "allocated_mib": peak_allocated(lambda: score(num_samples)),
        "resident_before_mib": before,
        "resident_mib": after,
    }


def by_draws(estimator: str, draws: list[int]) -> dict[str, Any]:
    """Every K in a child process that gives freed memory back at once."""
    table = []
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    for k in draws:
        child = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.memory",
            "--child",
            str(k),
            estimator,
        ]
        done = subprocess.run(child, check=True, capture_output=True, text=True, env=environment)
        table.append(json.loads(done.stdout.splitlines()[-1]))
        row = table[-1]
        print(
            f"{estimator:<9} K = {k:>6}  allocated {row['allocated_mib']:8.1f} MiB  resident "
            f"{row['resident_mib']:8.1f} MiB, "
            f"{row['resident_before_mib']:.1f} before",
            flush=True,
        )
    first, last = table[0], table[-1]
    growth = {
        f"growth_{kind}": last[f"{kind}_mib"] - first[f"{kind}_mib"]
        for kind in ("allocated", "resident")
    }
    print(
        f"{estimator:<9} K = {draws[0]} to {draws[-1]}: {growth['growth_allocated']:+.1f} MiB "
        "allocated",
        flush=True,
    )
    return {"rows": table, **growth}


def epoch_reads(tier: str) -> float:
    """Host reads of one epoch of `fit`."""
    at = ARCHITECTURES["digits b64"]
    images = at.images(4 * at.batch_size)
    return reads_per_epoch(lambda num_epochs: ours.epochs(at, images, tier)(num_epochs))


def main(asked: Options) -> None:
    """Measure in child processes, print, and write memory.json."""
    for name in chosen(asked.only, CASES):
        if name == "reads":
            found: Any = {tier: epoch_reads(tier) for tier in ("inductor", "graph")}
            print("host reads of an epoch of fit:", found, flush=True)
        else:
            found = by_draws(name, DRAWS[:2] if asked.quick else DRAWS)
        write("memory", {name: found}, asked.folder)


if __name__ == "__main__":
    if "--child" in sys.argv:
        torch.set_num_threads(1)
        print(json.dumps(measure(int(sys.argv[-2]), sys.argv[-1])))
    else:
        run_cli(main, Options, __doc__)
