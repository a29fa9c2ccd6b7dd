"""M2 with a few labels: ours beside the same networks and loss written by hand in plain torch.

python -m benchmarks.semi_supervised --data mnist --data-root ../shared/data
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyro_vae as pv
from benchmarks.harness import RESULTS, machine, run_cli, write
from pyro_vae import guides, models
from pyro_vae.data.datasets import load
from pyro_vae.data.transforms import Observed, observe
from pyro_vae.runs.experiment import few_labels

CLASSES = 10


@dataclass(frozen=True)
class SemiSupervised:
    """What the benchmark takes on its command line."""

    data: str = "mnist"
    """A data set with labels in ten classes."""
    data_root: Path | None = None
    """Where it has its files."""
    labels: int = 100
    """How many training images keep their label."""
    repeats: int = 60
    """How often an epoch visits each of them; the others are visited once."""
    only: Literal["both", "pyro_vae", "by hand"] = "both"
    """Whose training; the other's figures are kept."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the parameters, the noise and the choice of the labels."""
    epochs: int = 6
    """Passes over the training set."""
    batch_size: int = 200
    """Images a step."""
    hidden: int = 300
    """Width of the one hidden layer of each network."""
    latent_dim: int = 20
    """Dimensions of z."""
    out: Path = RESULTS
    """Where the JSON goes."""


class ByHand(nn.Module):
    """q(y | x), q(z | x, y), p(x | z, y) as in the parts `SemiSupervised`, and their loss."""

    def __init__(self, pixels: int, latent_dim: int, hidden: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

        def net(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(before, hidden), nn.SiLU(), nn.Linear(hidden, after))

        self.classifier, self.encoder = net(pixels, CLASSES), net(pixels + CLASSES, 2 * latent_dim)
        self.decoder = net(latent_dim + CLASSES, pixels)
        self.embedding = nn.Linear(CLASSES, CLASSES, bias=False)
        nn.init.normal_(self.embedding.weight)

    def bound(self, x: Tensor, code: Tensor) -> Tensor:
        """log p(x | z, y) − KL(q(z | x, y) ‖ p(z)) − log 10 of images and one-hot codes, ``(B,)``."""
        loc, log_scale = self.encoder(torch.cat((x, self.embedding(code)), -1)).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        logits = self.decoder(torch.cat((z, code), -1))
        seen = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
        return seen - kl - log(CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of an image; ``y`` is −1 where it is not known (Kingma et al. 2014, equation 9)."""
        log_q = torch.log_softmax(self.classifier(x), -1)
        known = y >= 0
        code = torch.eye(CLASSES)
        every = torch.stack([self.bound(x, code[c].expand(len(x), -1)) for c in range(CLASSES)], -1)
        unlabelled = (log_q.exp() * (every - log_q)).sum(-1)
        rows = y.clamp(min=0).unsqueeze(-1)
        labelled = every.gather(-1, rows) + self.alpha * log_q.gather(-1, rows)
        return -torch.where(known, labelled.squeeze(-1), unlabelled).mean()


def by_hand(seen: Observed, y: Tensor, asked: SemiSupervised, seed: int) -> Any:
    """The classifier of the plain training loop: Adam, a cosine to 0, pixels drawn at each visit."""
    torch.manual_seed(seed)
    x, draw = seen.x_train, seen.observe or (lambda rows: rows)
    alpha = 0.1 * len(x) / int((y >= 0).sum())
    net = ByHand(x[0].numel(), asked.latent_dim, asked.hidden, alpha)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    steps = asked.epochs * (len(x) // asked.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(asked.epochs):
        order = torch.randperm(len(x))[: steps // asked.epochs * asked.batch_size]
        for rows in order.split(asked.batch_size):
            loss = net(draw(x[rows]).flatten(1), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return lambda images: net.classifier(images.flatten(1))


def ours(seen: Observed, y: Tensor, asked: SemiSupervised, seed: int) -> Any:
    """The parts and `fit`."""
    torch.manual_seed(seed)
    shape, net = tuple(seen.x_train.shape[1:]), {"hidden": (asked.hidden,)}
    guide = guides.SemiSupervised(
        "MeanField", CLASSES, event_shape=shape, latent_dim=asked.latent_dim, **net
    )
    likelihood = models.Bernoulli(shape, asked.latent_dim + CLASSES, **net)
    prior = models.StandardNormal(asked.latent_dim)
    model = models.SemiSupervised(prior, likelihood, guide, CLASSES)
    sizes: dict[str, Any] = {"num_epochs": asked.epochs, "batch_size": asked.batch_size}
    pv.fit(
        model, guide, seen.x_train, y=y, binarize=seen.observe, seed=seed, progress=False, **sizes
    )
    return guide.classify


def main(asked: SemiSupervised) -> None:
    """Train both by each seed; the test accuracies and seconds, as JSON."""
    print(machine(), flush=True)
    data = load(asked.data, asked.data_root, seed=0)
    assert data.train_labels is not None and data.test_labels is not None
    seen = observe(data)
    found: dict[str, Any] = {}
    for seed in asked.seeds:
        kept = few_labels(data.train_labels, asked.labels, seed)
        again = kept.nonzero()[:, 0].repeat(asked.repeats - 1)
        rows = torch.cat((torch.arange(len(kept)), again))
        y = torch.where(kept, data.train_labels, -1)[rows]
        visited = replace(seen, x_train=seen.x_train[rows])
        for name, train in (("pyro_vae", ours), ("by hand", by_hand)):
            if asked.only not in ("both", name):
                continue
            begun, worked = time.monotonic(), time.process_time()
            classify = train(visited, y, asked, seed)
            seconds, cpu = time.monotonic() - begun, time.process_time() - worked
            with torch.no_grad():
                right = classify(seen.x_test).argmax(-1) == data.test_labels
            accuracy, error = float(right.double().mean()), float(right.double().std())
            row = {"seed": seed, "accuracy": accuracy, "se": error / len(right) ** 0.5}
            row |= {"seconds": seconds, "processor_seconds": cpu}
            found.setdefault(name, []).append(row)
            print(
                f"{name:<10} seed {seed}  {accuracy:.2%}  {seconds:.0f} s ({cpu:.0f} s of a core)"
            )
    left_out = ("out", "data_root", "only")
    settings = {key: value for key, value in vars(asked).items() if key not in left_out}
    write("semi_supervised", {"settings": settings, **found}, asked.out)


if __name__ == "__main__":
    run_cli(main, SemiSupervised, __doc__)
