"""Whole epochs, feeding included: hand-written PyTorch with resident data, `SVI` with a DataLoader,
NumPyro's scan, Pythae, `fit`.

python -m benchmarks.epochs [architecture …]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.architectures import ARCHITECTURES, Architecture
from benchmarks.contestants import Epochs, Train, hand_written, others, ours, pyro_svi
from benchmarks.harness import (
    Options,
    Table,
    assert_alike,
    chosen,
    interleave,
    ratios,
    report,
    run_cli,
    write,
)
from benchmarks.seats import seated

BASE = "hand-written, eager"
BATCHES = {"mlp400 b128": 60, "iwae b20": 150, "digits b64": 200}  # an epoch's, a fifth of a second
ROUNDS, EPOCHS = 9, 2
SEEDS, TRAINED = 4, 3
DRAWN_KL = "Pyro SVI as in its example, DataLoader"
"""Its ELBO's KL is a draw, not a closed form: it is noisier than the others, and its own noise
counts.
"""


def contestants(at: Architecture, images: Tensor) -> dict[str, Callable[[], Train]]:
    """Their makers, by name; those whose library is not installed are left out."""
    makers: dict[str, Callable[[], Train]] = {
        BASE: lambda: hand_written.epochs(at, images),
        "hand-written, torch.compile": lambda: hand_written.epochs(at, images, compiled=True),
        "Pyro SVI, DataLoader": lambda: pyro_svi.epochs(at, images),
        DRAWN_KL: lambda: pyro_svi.epochs(at, images, as_in_example=True),
    }
    if not images.is_cuda:
        makers |= others(
            {"numpyro": "NumPyro, scanned epoch", "pythae": "Pythae"}, "epochs", at, images
        )
    for tier in ("inductor", "graph"):
        makers[f"pyro_vae.fit, {tier}"] = lambda tier=tier: ours.epochs(at, images, tier)
    return makers


@dataclass(frozen=True)
class Runner:
    """A training loop."""

    epochs: Train

    def train(self, seed: int, num_epochs: int) -> Epochs:
        """Go on training for as many epochs."""
        torch.manual_seed(seed)
        return self.epochs(num_epochs)

    def seconds(self, num_epochs: int) -> float:
        """Of an epoch, on average."""
        return statistics.fmean(self.epochs(num_epochs).seconds)


def runner(name: str, at: Architecture, num_batches: int, device: str) -> Runner:
    """A contestant, by its name."""
    return Runner(contestants(at, at.images(at.batch_size * num_batches).to(device))[name]())


def same_training(
    at: Architecture,
    images: Tensor,
    trained: Mapping[str, Callable[[int, int], Epochs]],
    num_epochs: int,
) -> dict[str, float]:
    """The loss of an image in the last of as many epochs from the same parameters, asserted equal
    but for order and noise.

    The noise is that of the hand-written loop under other seeds (for `DRAWN_KL` with its own): 6
    deviations, at least 0.2%.
    """
    found = {  # `fit` runs one more
        name: train(0, num_epochs - 1 if name.startswith("pyro_vae") else num_epochs).loss
        for name, train in trained.items()
    }

    def again(make: Callable[[Architecture, Tensor], Train]) -> list[float]:
        return [Runner(make(at, images)).train(1 + seed, num_epochs).loss for seed in range(SEEDS)]

    hand = again(hand_written.epochs)
    own = again(partial(pyro_svi.epochs, as_in_example=True)) if DRAWN_KL in found else hand
    mean, noise = statistics.fmean(hand), statistics.stdev(hand)
    for names, deviation in (
        (found.keys() - {DRAWN_KL}, noise),
        (found.keys() & {DRAWN_KL}, math.hypot(noise, statistics.stdev(own))),
    ):
        losses = {name: found[name] for name in names}
        assert_alike(
            {**losses, "other seeds": mean}, "other seeds", max(6 * deviation, 2e-3 * mean)
        )
    return found


def bench(at: Architecture, num_batches: int, chosen: Options) -> Table:
    """All contestants on one architecture; an epoch of ours is timed by `fit`'s own callback."""
    num_batches = 20 if chosen.quick else num_batches
    images = at.images(at.batch_size * num_batches).to(chosen.device)
    rounds, num_epochs = (
        chosen.rounds or (2 if chosen.quick else ROUNDS),
        1 if chosen.quick else EPOCHS,
    )
    with seated(contestants(at, images), runner, at, num_batches, chosen.device) as seats:
        losses = same_training(
            at, images, {name: partial(seat.ask, "train") for name, seat in seats.items()}, TRAINED
        )
        turns = {name: partial(seat.ask, "seconds", num_epochs) for name, seat in seats.items()}
        table = ratios(interleave(turns, rounds), BASE)
    for name, row in table.items():
        row["loss"] = losses[name]
    return table


def main(asked: Options) -> None:
    """Time the architectures asked for, or all."""
    for name in chosen(asked.only, BATCHES):
        table = bench(ARCHITECTURES[name], BATCHES[name], asked)
        report(f"an epoch of {BATCHES[name]} batches, {name}", table, BASE)
        write("epochs" if asked.device == "cpu" else "epochs_cuda", {name: table}, asked.folder)


if __name__ == "__main__":
    run_cli(main, Options, __doc__)
