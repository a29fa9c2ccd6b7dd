"""Signal-to-noise ratio of each estimator's gradient against K, for the encoder and the decoder,
near and far from p(z | x).

python -m benchmarks.gradient_snr [--gradients 32768]      writes gradient_snr.json and
gradient_snr.png python -m benchmarks.gradient_snr --draw                   draws the picture of
that file again

The model is that of Rainforth et al. 2018 (section 4) in D = 5: z ~ N(μ, I), x | z ~ N(z, I), q(z |
x) = N(x/2 + b, s² I), with the gradients of μ (decoder) and b (encoder) at one image. p(z | x) is
N((x + μ)/2, I/2). SNR = ‖E ∇‖ / √(tr Cov ∇), from independent gradients; ‖E ∇‖² is less what the
noise adds to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from benchmarks.harness import RESULTS, run_cli, write
from pyro_vae.errors import UserError
from pyro_vae.objectives import CIWAE, IWAE, MIWAE, STL, DReG, Objective, Trace_ELBO

DIMS, DRAWS_AT_ONCE, BLOCKS = 5, 2**17, 8
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PLACES = {"near": (0.2, 0.5**0.5 * 1.02), "far": (0.5, (2 / 3) ** 0.5)}  # b less its best value, s
ESTIMATORS: dict[str, Callable[[int], Objective | None]] = {
    "IWAE(K)": IWAE,
    "DReG(K)": DReG,
    "MIWAE(K/8, 8)": lambda k: MIWAE(k // 8, 8) if k >= 8 else None,
    "CIWAE(0.5, K)": lambda k: CIWAE(0.5, k),
    "Trace_ELBO(K)": Trace_ELBO,
    "STL(K)": STL,
}


@dataclass(frozen=True)
class GradientSNR:
    """How many, and where to."""

    gradients: int = 32_768
    """Independent gradients of each estimator at each K."""
    draw: bool = False
    """Only draw what was measured."""
    out: Path = RESULTS
    """Where gradient_snr.json and gradient_snr.png go."""


def gradients(objective: Objective, place: str, rows: int, seed: int) -> dict[str, Tensor]:
    """``rows`` independent gradients of μ and b, each ``(rows, D)``: every row of the batch has its
    own μ and b.
    """
    offset, scale = PLACES[place]
    x = torch.randn(DIMS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2**0.5
    mu = nn.Parameter(torch.zeros(rows, DIMS, dtype=torch.float64))
    b = nn.Parameter(torch.full((rows, DIMS), offset, dtype=torch.float64))

    def model(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu[index], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + b[index], scale).to_event(1))

    loss = objective(model, guide).double()
    batch = x.expand(rows, DIMS), torch.arange(rows)
    loss(batch[0][:5], index=batch[1][:5])  # the pair is understood, from a random state of its own
    torch.manual_seed(seed)
    found = torch.autograd.grad(-loss(batch[0], index=batch[1]), (mu, b))
    return dict(zip(("decoder", "encoder"), found, strict=True))


def ratio(samples: Tensor) -> float:
    """‖E ∇‖ / √(tr Cov ∇), the squared mean being less the noise of a mean of so many."""
    noise = samples.var(0).sum()
    signal = samples.mean(0).square().sum() - noise / len(samples)
    return float((signal.clamp(min=0.0) / noise).sqrt()) if float(noise) > 1e-24 else float("inf")


def measure(objective: Objective, place: str, number: int) -> dict[str, tuple[float, float]]:
    """The ratio and its standard error (from blocks) for each program."""
    rows = max(1, min(number, DRAWS_AT_ONCE // objective.num_particles))
    parts = [gradients(objective, place, rows, seed) for seed in range(-(-number // rows))]
    found = {}
    for part in ("encoder", "decoder"):
        samples = torch.cat([each[part] for each in parts])
        blocks = torch.tensor([ratio(block) for block in samples.chunk(BLOCKS)])
        found[part] = ratio(samples), float(blocks.std() / BLOCKS**0.5)
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Four panels on two logarithmic axes: near and far, encoder and decoder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(
        zip(
            ESTIMATORS,
            ("#d62728", "#1f77b4", "#ff7f0e", "#9467bd", "#7f7f7f", "#2ca02c"),
            strict=True,
        )
    )
    figure, axes = pyplot.subplots(2, 2, figsize=(9.5, 7.2), sharex=True, layout="constrained")
    for line, place in zip(axes, PLACES, strict=True):
        for panel, part in zip(line, ("encoder", "decoder"), strict=True):
            for name, colour in colours.items():
                own = [
                    row
                    for row in rows
                    if (row["estimator"], row["place"], row["part"]) == (name, place, part)
                ]
                own = [
                    row for row in own if row["snr"] > 2 * row["se"]
                ]  # the others are noise alone
                panel.errorbar(
                    [row["K"] for row in own], [row["snr"] for row in own], [2 * row["se"] for row in own],
                    color=colour, label=name, marker="o", markersize=3.5, linewidth=1.6, capsize=2,
                )  # fmt: skip
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            start = float(panel.lines[0].get_ydata()[0])
            for power in (0.5, -0.5):
                panel.plot(
                    COUNTS,
                    [start * k**power for k in COUNTS],
                    color="0.6",
                    linewidth=1,
                    linestyle=":",
                    zorder=0,
                )
            panel.set_ylim(low, high)
            panel.set_xticks(COUNTS, [str(k) for k in COUNTS])
            panel.set_title(
                f"{part}, q {place} {'to' if place == 'near' else 'from'} the posterior",
                fontsize=11,
            )
            panel.grid(alpha=0.25)
    for panel in axes[1]:
        panel.set_xlabel("K, draws an image")
    for panel in axes[:, 0]:
        panel.set_ylabel("signal-to-noise ratio of one gradient")
    axes[0, 1].legend(fontsize=9)
    figure.suptitle(
        "Gradient estimators of a linear-Gaussian model (dotted: slopes ½ and −½ from IWAE's "
        "first point)\n"
        "the decoder's gradient of DReG is IWAE's, that of STL is Trace_ELBO's: one line lies on "
        "the other",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    print(path)


def main(asked: GradientSNR) -> None:
    """Measure and draw, or draw again."""
    path = asked.out / "gradient_snr.json"
    if not asked.draw:
        write("gradient_snr", measured(asked.gradients), asked.out)
    elif not path.exists():
        raise UserError(f"{path}: no such file to draw; without --draw it is measured")
    draw(json.loads(path.read_text())["rows"], path.with_suffix(".png"))


def measured(number: int) -> dict[str, Any]:
    """Every estimator at every K, in turn."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for place in PLACES:
        for name, make in ESTIMATORS.items():
            for count in COUNTS:
                objective, started = make(count), time.perf_counter()
                if objective is None:
                    continue
                for part, (snr, se) in measure(objective, place, number).items():
                    rows.append(
                        {
                            "place": place,
                            "estimator": name,
                            "K": count,
                            "part": part,
                            "snr": snr,
                            "se": se,
                        }
                    )
                shown = "  ".join(
                    f"{row['part']} {row['snr']:.4f} ± {row['se']:.4f}" for row in rows[-2:]
                )
                print(
                    f"{place} {name:<14} K={count:<4} {shown}  "
                    f"({time.perf_counter() - started:.1f} s)",
                    flush=True,
                )
    setting = {
        "dims": DIMS,
        "gradients": number,
        "places": {k: {"b": b, "s": s} for k, (b, s) in PLACES.items()},
    }
    return {"setting": setting, "rows": rows}


if __name__ == "__main__":
    run_cli(main, GradientSNR, __doc__)
