"""One training step: hand-written PyTorch, Pyro's SVI, NumPyro, Pythae and pyro_vae's tiers; one
model, one batch, Adam.

python -m benchmarks.training_step [architecture …]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.architectures import ARCHITECTURES, Architecture
from benchmarks.contestants import Step, hand_written, others, ours, pyro_svi
from benchmarks.harness import (
    Options,
    Table,
    around,
    assert_alike,
    chosen,
    interleave,
    ratios,
    repeated,
    report,
    run_cli,
    synchronize,
    write,
)
from benchmarks.seats import seated

BASE = "hand-written, eager"
ROUNDS, ROUND_SECONDS = 11, 0.25
SEEDS, TRAINED, SLOW = 5, 200, 0.02  # a slower step trains for an eighth of the steps


def contestants(at: Architecture, x: Tensor) -> dict[str, Callable[[], Step]]:
    """Their makers, by name; those whose library is not installed are left out."""
    makers: dict[str, Callable[[], Step]] = {
        BASE: lambda: hand_written.step(at, x),
        "hand-written, torch.compile": lambda: hand_written.step(at, x, compiled=True),
        "Pyro SVI": lambda: pyro_svi.step(at, x),
    }
    if x.is_cuda:
        makers["hand-written, CUDA graph"] = lambda: hand_written.captured_step(at, x)
    if not x.is_cuda:
        makers |= others({"numpyro": "NumPyro, jitted step", "pythae": "Pythae"}, "step", at, x)
    for tier in ("inductor", "graph", "off"):
        makers[f"pyro_vae, {tier}"] = lambda tier=tier: ours.step(at, x, tier)
    makers["pyro_vae, inductor, Adam beside"] = lambda: ours.step(at, x, "inductor", beside=True)
    return makers


@dataclass(frozen=True)
class Runner:
    """A step, trained or timed."""

    step: Step

    def last_loss(self, seed: int, num_steps: int) -> float:
        """Train, and the mean loss of the last quarter of the steps."""
        torch.manual_seed(seed)
        with around(self.step):
            losses = [self.step() for _ in range(num_steps)]
        return statistics.fmean(float(loss) for loss in losses[-(num_steps // 4) :])

    def seconds(self, times: int) -> float:
        """Of as many steps, after a few that wake the threads and fill the caches."""
        run = repeated(self.step, times)
        repeated(self.step, max(1, times // 10))()
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        return time.perf_counter() - started


def runner(name: str, at: Architecture, device: str) -> Runner:
    """A contestant, by its name."""
    x = at.images(at.batch_size).to(device)
    return Runner(contestants(at, x)[name]())


def same_training(
    at: Architecture,
    x: Tensor,
    trained: Mapping[str, Callable[[int, int], float]],
    num_steps: int = TRAINED,
) -> dict[str, float]:
    """The last losses from the same parameters on the same batch, asserted equal but for the noise.

    The noise is what other draws of z do to the hand-written step's loss: 6 standard deviations, at
    least 0.1%.
    """
    found = {name: train(0, num_steps) for name, train in trained.items()}
    again = [
        Runner(hand_written.step(at, x)).last_loss(1 + seed, num_steps) for seed in range(SEEDS)
    ]
    mean = statistics.fmean(again)
    assert_alike(
        {**found, "other draws": mean}, "other draws", max(6 * statistics.stdev(again), 1e-3 * mean)
    )
    return found


def bench(at: Architecture, chosen: Options) -> Table:
    """All contestants on one architecture."""
    x = at.images(at.batch_size).to(chosen.device)
    alone = Runner(hand_written.step(at, x))
    seconds = min(alone.seconds(5) for _ in range(3)) / 5
    with seated(contestants(at, x), runner, at, chosen.device) as seats:
        num_steps = TRAINED // 8 if seconds > SLOW else TRAINED // 4 if chosen.quick else TRAINED
        losses = same_training(
            at, x, {name: partial(seat.ask, "last_loss") for name, seat in seats.items()}, num_steps
        )
        times = 2 if chosen.quick else max(2, round(ROUND_SECONDS / seconds))
        turns = {name: partial(seat.ask, "seconds", times) for name, seat in seats.items()}
        table = ratios(interleave(turns, chosen.rounds or (2 if chosen.quick else ROUNDS)), BASE)
    for name, row in table.items():
        row["seconds"] /= times
        row["loss"] = losses[name]
    return table


def main(asked: Options) -> None:
    """Time the architectures asked for, or all."""
    for name in chosen(asked.only, ARCHITECTURES):
        table = bench(ARCHITECTURES[name], asked)
        report(f"training step, {name}", table, BASE)
        write(
            "training_step" if asked.device == "cpu" else "training_step_cuda",
            {name: table},
            asked.folder,
        )


if __name__ == "__main__":
    run_cli(main, Options, __doc__)
