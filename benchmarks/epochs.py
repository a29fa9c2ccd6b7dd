"""Whole epochs, feeding included: hand-written PyTorch with resident data, `SVI` with a DataLoader, NumPyro's scan, Pythae, `fit`.

python benchmarks/epochs.py [architecture …]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from architectures import ARCHITECTURES, Architecture
from contestants import Train, hand_written, ours, pyro_svi
from harness import Options, Table, assert_alike, chosen, interleave, machine, options, ratios, report, write
from torch import Tensor

BASE = "hand-written, eager"
BATCHES = {"mlp400 b128": 60, "iwae b20": 150, "digits b64": 200}  # an epoch's, a fifth of a second
ROUNDS, EPOCHS = 9, 2
SEEDS, TRAINED = 4, 3


def contestants(at: Architecture, images: Tensor) -> dict[str, Callable[[], Train]]:
    """Their makers, by name; those whose library is not installed are left out."""
    makers: dict[str, Callable[[], Train]] = {
        BASE: lambda: hand_written.epochs(at, images),
        "hand-written, torch.compile": lambda: hand_written.epochs(at, images, compiled=True),
        "Pyro SVI, DataLoader": lambda: pyro_svi.epochs(at, images),
    }
    if find_spec("numpyro") and not images.is_cuda:
        from contestants import numpyro_svi

        makers["NumPyro, scanned epoch"] = lambda: numpyro_svi.epochs(at, images)
    if find_spec("pythae") and not images.is_cuda:
        from contestants import pythae_vae

        makers["Pythae"] = lambda: pythae_vae.epochs(at, images)
    for tier in ("inductor", "graph"):
        makers[f"pyro_vae.fit, {tier}"] = lambda tier=tier: ours.epochs(at, images, tier)
    return makers


def same_training(at: Architecture, images: Tensor, trains: Mapping[str, Train], num_epochs: int) -> dict[str, float]:
    """The loss of an image in the last of as many epochs from the same parameters, asserted equal but for order and noise.

    The noise is that of the hand-written loop under other seeds: 6 standard deviations, at least 0.2%.
    """
    found = {}
    for name, train in trains.items():
        torch.manual_seed(0)
        found[name] = train(num_epochs - 1 if name.startswith("pyro_vae") else num_epochs).loss  # `fit` runs one more
    others = []
    for seed in range(SEEDS):
        train = hand_written.epochs(at, images)
        torch.manual_seed(1 + seed)
        others.append(train(num_epochs).loss)
    mean = statistics.fmean(others)
    assert_alike({**found, "other seeds": mean}, "other seeds", max(6 * statistics.stdev(others), 2e-3 * mean))
    return found


def bench(at: Architecture, num_batches: int, chosen: Options) -> Table:
    """All contestants on one architecture; an epoch of ours is timed by `fit`'s own callback."""
    torch._dynamo.reset()
    images = at.images(at.batch_size * (20 if chosen.quick else num_batches)).to(chosen.device)
    trains = {name: make() for name, make in contestants(at, images).items()}
    losses = same_training(at, images, trains, TRAINED)
    rounds, num_epochs = chosen.rounds or (2 if chosen.quick else ROUNDS), 1 if chosen.quick else EPOCHS

    def mean_epoch(train: Train) -> Callable[[], float]:
        return lambda: statistics.fmean(train(num_epochs).seconds)

    table = ratios(interleave({name: mean_epoch(train) for name, train in trains.items()}, rounds), BASE)
    for name, row in table.items():
        row["loss"] = losses[name]
    return table


def main() -> None:
    """Time the architectures asked for, or all."""
    asked = options(__doc__)
    print(machine(), flush=True)
    for name in chosen(asked.only, BATCHES):
        table = bench(ARCHITECTURES[name], BATCHES[name], asked)
        report(f"an epoch of {BATCHES[name]} batches, {name}", table, BASE)
        write("epochs" if asked.device == "cpu" else "epochs_cuda", {name: table}, asked)


if __name__ == "__main__":
    main()
