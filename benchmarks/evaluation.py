"""log p(x) by K = 5000 importance samples: a 50-200-200-784 Bernoulli decoder, trained on enlarged
digits; seconds an image.

python -m benchmarks.evaluation [float32] [bfloat16]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor

import pyro_vae as pv
from benchmarks.architectures import ARCHITECTURES, large_digits, plain_networks
from benchmarks.contestants import hand_written, others, ours, pyro_svi
from benchmarks.harness import (
    Options,
    Table,
    chosen,
    interleave,
    ratios,
    report,
    run_cli,
    synchronize,
    write,
)
from benchmarks.seats import seated
from pyro_vae.errors import UserError

BASE = "hand-written, eager, chunks of 500"
PRECISIONS = ("float32", "bfloat16")
NUM_SAMPLES, ROUNDS, STEPS = 5000, 7, 1500
FEW, SOME, MORE, MANY = 8, 32, 64, 512
"""Images a round: of those that take them one by one, of the base, of our replayed and our compiled
form, set-up included.
"""
SIGMAS = 5.0


@dataclass(frozen=True)
class Contestant:
    """An estimator of log p(x), and how many images it is given in one round."""

    log_px: Callable[[Tensor], Any]  # each image's, or their mean
    num_images: int


@dataclass(frozen=True)
class Runner:
    """A contestant on the images of the benchmark."""

    contestant: Contestant
    x: Tensor

    def mean(self) -> float:
        """Of its round's images, in nats."""
        found: float = (
            self.contestant.log_px(self.x[: self.contestant.num_images]).double().mean().item()
        )
        return found

    def seconds(self) -> float:
        """An image."""
        synchronize()
        started = time.perf_counter()
        self.mean()
        return (time.perf_counter() - started) / self.contestant.num_images


def runner(
    name: str, num_steps: int, num_samples: int, precisions: list[str], device: str
) -> Runner:
    """A contestant by its name, on a pair that is trained again: the same, as the seed is."""
    model, guide, x = trained_pair(num_steps, device)
    return Runner(contestants(model, guide, num_samples, precisions, device)[name], x)


def contestants(
    model: Any, guide: Any, num_samples: int, precisions: list[str], device: str
) -> dict[str, Contestant]:
    """By name; those whose library is not installed, and precisions that are not there, are left
    out.
    """
    encoder, decoder = plain_networks(model, guide)
    each: dict[str, Contestant] = {}

    def add(name: str, log_px: Callable[[Tensor], Any], num_images: int = FEW) -> None:
        each[name] = Contestant(log_px, num_images)

    add(BASE, lambda x: hand_written.log_px(encoder, decoder, x, num_samples), SOME)
    for precision in precisions:
        for tier in ("inductor", "graph"):
            add(
                f"pyro_vae.log_marginal, {precision}, {tier}",
                lambda x, tier=tier, precision=precision: (
                    ours.log_px(model, guide, x, num_samples, tier, precision).log_px
                ),
                MANY if tier == "inductor" else MORE,
            )
    if device != "cpu":
        return each
    add("Pyro RenyiELBO", lambda x: pyro_svi.renyi_log_px(encoder, decoder, x, num_samples))
    add(
        "Pyro vectorized_importance_weights",
        lambda x: pyro_svi.vectorized_log_px(encoder, decoder, x, num_samples),
    )
    makers = others({"numpyro": "NumPyro RenyiELBO"}, "log_px", encoder, decoder, num_samples)
    for chunk in (100, 500):
        named = {"pythae": f"Pythae get_nll, chunks of {chunk}"}
        makers |= others(named, "log_px", encoder, decoder, 50, num_samples, chunk)
    for name, make in makers.items():
        add(name, once(make))
    return each


def once(make: Callable[[], Callable[[Tensor], Any]]) -> Callable[[Tensor], Any]:
    """A contestant that is made at its first use."""
    made = cache(make)
    return lambda x: made()(x)


def trained_pair(num_steps: int, device: str) -> tuple[Any, Any, Tensor]:
    """The pair of the benchmark, and images: of those that it was trained on, whose weights have
    the lighter tails.
    """
    at = ARCHITECTURES["iwae b20"]
    images = large_digits(1797)
    model, guide = at.pair()
    pv.fit(
        model,
        guide,
        images,
        num_steps=num_steps,
        batch_size=100,
        device=device,
        compile="graph",
        progress=False,
    )
    return model, guide, images[:MANY].to(device)


def assert_same_estimates(
    found: Mapping[str, float], each: Mapping[str, Contestant], exact: pv.LogMarginal
) -> dict[str, float]:
    """Every contestant's mean less ours on the same images, within 5 standard errors of such a
    difference.
    """
    apart = {}
    for name, mean in found.items():
        n = each[name].num_images
        noise = float(exact.se[:n].square().sum().sqrt() / n) * 2**0.5
        apart[name] = mean - float(exact.log_px[:n].mean())
        allowed = SIGMAS * noise + (0.01 if "bfloat16" in name else 0.0)
        assert abs(apart[name]) < allowed, (
            f"{name}: {apart[name]:+.3f} nats from ours, noise {noise:.3f}"
        )
    return apart


def available(precisions: list[str], model: Any, guide: Any, x: Tensor) -> list[str]:
    """Those that `log_marginal` knows."""
    found = []
    for precision in precisions:
        try:
            ours.log_px(model, guide, x[:2], 10, "graph", precision)
            found.append(precision)
        except UserError as mistake:
            print(f"{precision}: left out ({mistake})")
    return found


def bench(precisions: list[str], chosen: Options) -> Table:
    """All contestants: seconds an image."""
    num_steps, num_samples = (100, 1000) if chosen.quick else (STEPS, NUM_SAMPLES)
    model, guide, x = trained_pair(num_steps, chosen.device)
    there = available(precisions, model, guide, x)
    each = contestants(model, guide, num_samples, there, chosen.device)
    exact = ours.log_px(model, guide, x, num_samples, "graph")
    with seated(each, runner, num_steps, num_samples, there, chosen.device) as seats:
        apart = assert_same_estimates(
            {name: seat.ask("mean") for name, seat in seats.items()}, each, exact
        )
        turns = {name: partial(seat.ask, "seconds") for name, seat in seats.items()}
        table = ratios(interleave(turns, chosen.rounds or (2 if chosen.quick else ROUNDS)), BASE)
    for name, row in table.items():
        row["difference"], row["images"] = apart[name], each[name].num_images
    return table


def main(asked: Options) -> None:
    """Time the precisions asked for, or both."""
    table = bench(chosen(asked.only, PRECISIONS), asked)
    report(f"log p(x) of an image, K = {1000 if asked.quick else NUM_SAMPLES}", table, BASE)
    write(
        "evaluation" if asked.device == "cpu" else "evaluation_cuda",
        {"log_px": table},
        asked.folder,
    )


if __name__ == "__main__":
    run_cli(main, Options, __doc__)
