"""M2 with a few labels: ours beside the same networks and loss written by hand in plain torch.

python -m benchmarks.semi_supervised --data mnist --data-root ../shared/data
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import log, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyro_vae as pv
from benchmarks.harness import RESULTS, machine, run_cli, write
from pyro_vae import guides, models
from pyro_vae.data.datasets import load
from pyro_vae.data.labels import few_labels
from pyro_vae.data.loaders import make_source
from pyro_vae.data.observations import Observation
from pyro_vae.data.transforms import observe

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
    alpha: float = 50.0
    """α of one visit of a labelled image. At Kingma's 0.1 · N / N_labelled, which is 1.1 of these,
    six passes end near 50%."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the parameters, the noise and the choice of the labels."""
    epochs: int = 3
    """Passes over the training set."""
    batch_size: int = 100
    """Images a step."""
    learning_rate: float = 1e-3
    """Adam's at its highest, at the first step."""
    hidden: int = 128
    """Width of the one hidden layer of each network."""
    latent_dim: int = 48
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


def pair(pixels: int, asked: SemiSupervised, alpha: float) -> tuple[Any, Any, ByHand]:
    """The parts, and the same networks by hand with the same initial weights; images are flat, as
    of others the class is embedded as a channel.
    """
    net = {"hidden": (asked.hidden,)}
    guide = guides.SemiSupervised(
        "MeanField", CLASSES, event_shape=(pixels,), latent_dim=asked.latent_dim, **net
    )
    likelihood = models.Bernoulli((pixels,), asked.latent_dim + CLASSES, **net)
    prior = models.StandardNormal(asked.latent_dim)
    model = models.SemiSupervised(prior, likelihood, guide, CLASSES, alpha)
    plain = ByHand(pixels, asked.latent_dim, asked.hidden, alpha)
    for own, part in (
        (plain.classifier, guide.classifier),
        (plain.encoder, guide.guide.net),
        (plain.decoder, likelihood.net),
        (plain.embedding, guide.embedding),
    ):
        for to, value in zip(own.parameters(), part.parameters(), strict=True):
            to.data.copy_(value.data)
    return model, guide, plain


def by_hand(
    net: ByHand, x: Tensor, y: Tensor, draw: Observation | None, asked: SemiSupervised, seed: int
) -> None:
    """The plain training loop: Adam, a cosine to 0, pixels drawn at each visit, by the seed and in
    the order of `fit`.
    """
    source = make_source(x, {"y": y}, asked.batch_size, torch.device("cpu"))
    optimizer = torch.optim.Adam(net.parameters(), lr=asked.learning_rate)
    steps = asked.epochs * source.num_batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(seed)
    for epoch in range(asked.epochs):
        for images, fields in source.shuffled(seed, epoch + 1):
            loss = net(images if draw is None else draw(images), fields["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def labels_alone(
    net: nn.Module, x: Tensor, y: Tensor, draw: Observation | None, asked: SemiSupervised, seed: int
) -> None:
    """The classifier by the images that have a label, which it visits as often as the others do."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=asked.learning_rate)
    for _ in range(asked.epochs):
        for rows in torch.randperm(len(x)).split(asked.batch_size):
            logits = net(x[rows] if draw is None else draw(x[rows]))
            optimizer.zero_grad()
            F.cross_entropy(logits, y[rows]).backward()
            optimizer.step()


def trainings(
    x: Tensor, y: Tensor, draw: Observation | None, asked: SemiSupervised, seed: int
) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
    """(name, q(y | x) as logits, its training) of the parts and `fit`, and of the loop by hand: from
    the same weights, on the same batches, seeded alike (the noise is the same where torch draws ten
    classes at once as it draws them one by one: sizes that 16 divides); then of the labels alone.
    """
    torch.manual_seed(seed)
    model, guide, plain = pair(x.shape[1], asked, asked.alpha)
    alone, known = deepcopy(plain.classifier), y >= 0
    options: dict[str, Any] = {
        "num_epochs": asked.epochs,
        "batch_size": asked.batch_size,
        "learning_rate": asked.learning_rate,
        "seed": seed,
        "device": "cpu",
        "progress": False,
    }
    yield (
        "pyro_vae",
        guide.classify,
        lambda: pv.fit(model, guide, x, y=y, binarize=draw, **options),
    )
    yield "by hand", plain.classifier, lambda: by_hand(plain, x, y, draw, asked, seed)
    few = x[known], y[known]
    yield "labels alone", alone, lambda: labels_alone(alone, *few, draw, asked, seed)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Of independent seeds; the error of one is not known."""
    number = len(values)
    error = statistics.stdev(values) / number**0.5 if number > 1 else nan
    return statistics.mean(values), error


def main(asked: SemiSupervised) -> None:
    """Train both by each seed; the test accuracies and seconds, as JSON."""
    print(machine(), flush=True)
    data = load(asked.data, asked.data_root, seed=0)
    assert data.train_labels is not None and data.test_labels is not None
    seen = observe(data)
    images, found = seen.x_test.flatten(1), defaultdict[str, list[dict[str, float]]](list)
    for seed in asked.seeds:
        kept = few_labels(data.train_labels, asked.labels, seed)
        again = kept.nonzero()[:, 0].repeat(asked.repeats - 1)
        rows = torch.cat((torch.arange(len(kept)), again))
        y = torch.where(kept, data.train_labels, -1)[rows]
        for name, classify, train in trainings(
            seen.x_train[rows].flatten(1), y, seen.observe, asked, seed
        ):
            begun, worked = time.monotonic(), time.process_time()
            train()
            seconds, cpu = time.monotonic() - begun, time.process_time() - worked
            with torch.no_grad():
                right = classify(images).argmax(-1) == data.test_labels
            accuracy = float(right.double().mean())
            found[name].append(
                {
                    "seed": seed,
                    "accuracy": accuracy,
                    "seconds": seconds,
                    "processor_seconds": cpu,
                }
            )
            said = f"{accuracy:.2%}  {seconds:.0f} s ({cpu:.0f} s of a core)"
            print(f"{name:<12} seed {seed}  {said}", flush=True)
        means = {
            name: mean_and_error([row["accuracy"] for row in each]) for name, each in found.items()
        }
        pairs = zip(found["pyro_vae"], found["by hand"], strict=True)
        apart = [ours["accuracy"] - theirs["accuracy"] for ours, theirs in pairs]
        means["difference"] = mean_and_error(apart)
        settings = {k: v for k, v in vars(asked).items() if k not in ("out", "data_root", "seeds")}
        write(
            "semi_supervised", {"settings": settings, **found, "mean and error": means}, asked.out
        )
    for name, (mean, error) in means.items():
        print(f"{name:<12} {mean:.2%} ± {error:.2%}")


if __name__ == "__main__":
    run_cli(main, SemiSupervised, __doc__)
