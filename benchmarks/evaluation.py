"""log p(x) by K = 5000 importance samples: a 50-200-200-784 Bernoulli decoder, trained on enlarged digits; seconds an image.

python benchmarks/evaluation.py [float32] [bfloat16]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from architectures import ARCHITECTURES, large_digits, plain_networks
from contestants import hand_written, ours, pyro_svi
from harness import Options, Table, chosen, interleave, machine, options, ratios, report, write
from torch import Tensor

import pyro_vae as pv
from pyro_vae.errors import UserError

BASE = "hand-written, eager, chunks of 500"
NUM_SAMPLES, ROUNDS, STEPS = 5000, 7, 1500
FEW, SOME, MANY = 8, 32, 256  # images a round: of contestants that take them one by one, of the base, and of ours, whose set-up is part of its time
SIGMAS = 5.0


@dataclass(frozen=True)
class Contestant:
    """An estimator of log p(x), and how many images it is given in one round."""

    log_px: Callable[[Tensor], Any]  # each image's, or their mean
    num_images: int


def contestants(model: Any, guide: Any, num_samples: int, precisions: list[str], device: str) -> dict[str, Contestant]:
    """By name; those whose library is not installed, and precisions that are not there, are left out."""
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
                MANY,
            )
    if device != "cpu":
        return each
    add("Pyro RenyiELBO", lambda x: pyro_svi.renyi_log_px(encoder, decoder, x, num_samples))
    add("Pyro vectorized_importance_weights", lambda x: pyro_svi.vectorized_log_px(encoder, decoder, x, num_samples))
    if find_spec("numpyro"):
        from contestants import numpyro_svi

        add("NumPyro RenyiELBO", numpyro_svi.log_px(encoder, decoder, num_samples))
    if find_spec("pythae"):
        from contestants import pythae_vae

        for chunk in (100, 500):
            add(f"Pythae get_nll, chunks of {chunk}", pythae_vae.log_px(encoder, decoder, 50, num_samples, chunk))
    return each


def trained_pair(num_steps: int, device: str) -> tuple[Any, Any, Tensor]:
    """The pair of the benchmark, and images that it was not trained on."""
    at = ARCHITECTURES["iwae b20"]
    images = large_digits(1797)
    model, guide = at.pair()
    pv.fit(
        model, guide, images[MANY:], num_steps=num_steps, batch_size=100, device=device, compile="graph", progress=False
    )
    return model, guide, images[:MANY].to(device)


def assert_same_estimates(
    each: dict[str, Contestant], model: Any, guide: Any, x: Tensor, num_samples: int
) -> dict[str, float]:
    """Every contestant's mean less ours on the same images, within 5 standard errors of such a difference."""
    exact = ours.log_px(model, guide, x, num_samples, "off")
    apart = {}
    for name, contestant in each.items():
        n = contestant.num_images
        found = contestant.log_px(x[:n]).double().mean().item()
        noise = float(exact.se[:n].square().sum().sqrt() / n) * 2**0.5
        apart[name] = found - float(exact.log_px[:n].mean())
        allowed = SIGMAS * noise + (0.01 if "bfloat16" in name else 0.0)
        assert abs(apart[name]) < allowed, f"{name}: {apart[name]:+.3f} nats from ours, noise {noise:.3f}"
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
    model, guide, x = trained_pair(100 if chosen.quick else STEPS, chosen.device)
    num_samples = 1000 if chosen.quick else NUM_SAMPLES
    each = contestants(model, guide, num_samples, available(precisions, model, guide, x), chosen.device)
    apart = assert_same_estimates(each, model, guide, x, num_samples)

    def round_of(contestant: Contestant) -> Callable[[], None]:
        def work() -> None:
            contestant.log_px(x[: contestant.num_images])

        return work

    timings = interleave(
        {name: round_of(c) for name, c in each.items()}, chosen.rounds or (2 if chosen.quick else ROUNDS)
    )
    for name, timing in timings.items():
        timing.seconds[:] = [seconds / each[name].num_images for seconds in timing.seconds]
    table = ratios(timings, BASE)
    for name, row in table.items():
        row["difference"], row["images"] = apart[name], each[name].num_images
    return table


def main() -> None:
    """Time the precisions asked for, or both."""
    asked = options(__doc__)
    print(machine(), flush=True)
    table = bench(chosen(asked.only, ("float32", "bfloat16")), asked)
    report(f"log p(x) of an image, K = {1000 if asked.quick else NUM_SAMPLES}", table, BASE)
    write("evaluation" if asked.device == "cpu" else "evaluation_cuda", {"log_px": table}, asked)


if __name__ == "__main__":
    main()
