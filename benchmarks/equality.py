"""200 steps in each tier against eager Pyro, same seed: losses and parameters, on the architectures
of the benchmarks.

In float64 besides: what is rounding in float32, amplified by Adam and BatchNorm, vanishes there.

python -m benchmarks.equality [architecture …]
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.architectures import ARCHITECTURES, Architecture
from benchmarks.harness import Options, chosen, run_cli, write

STEPS, LIMIT = 200, 1e-5


def trained(at: Architecture, tier: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of each pass, and the parameters by name."""
    model, guide = at.pair()
    model.to(dtype), guide.to(dtype)
    x = at.images(4 * at.batch_size).to(dtype)
    history = pv.fit(
        model,
        guide,
        x,
        num_steps=STEPS,
        batch_size=at.batch_size,
        compile=tier,
        device="cpu",
        progress=False,
    )
    assert history.compile == tier, history.note
    named = {
        f"{role}.{name}": p.detach()
        for role, m in (("model", model), ("guide", guide))
        for name, p in m.named_parameters()
    }
    return torch.tensor([record.loss for record in history.train], dtype=torch.float64), named


def compare(at: Architecture, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """The largest differences of the two staged tiers."""
    losses, parameters = trained(at, "off", dtype)
    table = {}
    for tier in ("graph", "inductor"):
        found, values = trained(at, tier, dtype)
        table[tier] = {
            "loss": float(((found - losses) / losses).abs().max()),
            "parameters": max(
                float((values[name] - parameters[name]).abs().max()) for name in parameters
            ),
            "beyond": sum(
                int(((values[name] - parameters[name]).abs() > LIMIT).sum()) for name in parameters
            ),
            "of": sum(value.numel() for value in parameters.values()),
        }
    return table


def main(asked: Options) -> None:
    """The architectures asked for, or all; each is kept as soon as it is measured."""
    for name, dtype in product(chosen(asked.only, ARCHITECTURES), (torch.float32, torch.float64)):
        words = f"{name}, {str(dtype).removeprefix('torch.')}"
        table = compare(ARCHITECTURES[name], dtype)
        for tier, row in table.items():
            print(
                f"{words:21} {tier:9} losses {row['loss']:.1e} relative, parameters "
                f"{row['parameters']:.1e}",
                end="",
            )
            print(f", {row['beyond']} of {row['of']} beyond {LIMIT:g}", flush=True)
        write("equality", {words: table}, asked.folder)


if __name__ == "__main__":
    run_cli(main, Options, __doc__)
