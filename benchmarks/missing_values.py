"""MIWAE on digits of which half the pixels are missing, beside training on mean-imputed ones.

python -m benchmarks.missing_values
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.harness import RESULTS, machine, run_cli, write
from pyro_vae import guides, models
from pyro_vae.data.datasets import load
from pyro_vae.data.transforms import observe


@dataclass(frozen=True)
class MissingValues:
    """What the benchmark takes on its command line."""

    data: str = "digits"
    """A data set of grey images."""
    data_root: Path | None = None
    """Where it has its files."""
    missing: float = 0.5
    """The share of the pixels that are missing, at random."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the parameters, the noise and the holes."""
    epochs: int = 100
    """Passes over the training set."""
    num_particles: int = 10
    """K of the bound: IWAE's, which is MIWAE where pixels are missing."""
    num_samples: int = 1000
    """K of log p(x) of the whole test images."""
    imputed: int = 100
    """Test images of which half the pixels are imputed."""
    hidden: int = 200
    """Width of the one hidden layer of each network."""
    latent_dim: int = 10
    """Dimensions of z."""
    out: Path = RESULTS
    """Where the JSON goes."""


def holes(x: Tensor, share: float, seed: int) -> Tensor:
    """``x`` as floats, NaN in this share of its entries."""
    generator = torch.Generator().manual_seed(seed)
    return x.float().masked_fill(torch.rand(x.shape, generator=generator) < share, torch.nan)


def ways(x: Tensor, marked: Tensor) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The training images, and the guide's arguments, of each contestant."""
    mean = marked.nanmean(0).nan_to_num().expand_as(marked)
    return {
        "MIWAE": (marked, {}),
        "MIWAE, mask channel": (marked, {"mask_channel": True}),
        "mean-imputed": (torch.where(marked.isnan(), mean, marked), {}),
        "nothing missing": (x.float(), {}),
    }


def main(asked: MissingValues) -> None:
    """Train each by each seed; log p(x) of whole test images and the error of the pixels that are
    missing there, with what differs from MIWAE, as JSON.
    """
    print(machine(), flush=True)
    seen = observe(data := load(asked.data, asked.data_root, seed=0))
    assert seen.observe is not None
    shape, net = tuple(data.event_shape), {"hidden": (asked.hidden,), "missing": "nan"}
    whole, found = seen.x_test[: asked.imputed], {}
    gaps = (test := holes(whole, asked.missing, 100)).isnan()
    for seed in asked.seeds:
        for name, (x, given) in ways(data.train, holes(data.train, asked.missing, seed)).items():
            torch.manual_seed(seed)
            likelihood = models.Bernoulli(shape, asked.latent_dim, **net)
            model = models.GenerativeModel(models.StandardNormal(asked.latent_dim), likelihood)
            guide = guides.MeanField(shape, asked.latent_dim, **net, **given)
            bound = f"IWAE({asked.num_particles})"
            sizes: dict[str, Any] = {"num_epochs": asked.epochs, "seed": seed, "progress": False}
            pv.fit(model, guide, x, objective=bound, binarize=seen.observe, **sizes)
            scores = pv.log_marginal(model, guide, seen.x_test, asked.num_samples)
            restored = pv.impute(model, guide, test, num_steps=100, seed=seed).mean
            errors = (restored - whole).square().masked_fill(~gaps, 0.0).flatten(1).sum(1)
            rms = errors / gaps.flatten(1).sum(1).clamp(min=1)
            found[name, seed] = scores.log_px.double(), rms.double()
            print(f"{name:<20} seed {seed}  {scores}", flush=True)
    rows = [_row(name, asked.seeds, found) for name in dict.fromkeys(n for n, _ in found)]
    settings = {key: value for key, value in vars(asked).items() if key not in ("out", "data_root")}
    write("missing_values", {"settings": settings, "rows": rows}, asked.out)


def _row(name: str, seeds: tuple[int, ...], found: dict[tuple[str, int], Any]) -> dict[str, Any]:
    """Means over images and seeds; errors over the images, and over the seeds."""
    log_px, squares = (torch.stack([found[name, seed][i] for seed in seeds]) for i in (0, 1))
    less = log_px - torch.stack([found["MIWAE", seed][0] for seed in seeds])
    row = {
        "training": name,
        "log_px": float(log_px.mean()),
        "se_images": _error(log_px.mean(0)),
        "se_seeds": stdev(log_px.mean(1).tolist()) / len(seeds) ** 0.5,
        "difference": float(less.mean()),
        "se_difference_images": _error(less.mean(0)),
        "se_difference_seeds": stdev(less.mean(1).tolist()) / len(seeds) ** 0.5,
        "rms_missing": fmean(each.mean().sqrt().item() for each in squares),
        "se_rms_seeds": stdev(each.mean().sqrt().item() for each in squares) / len(seeds) ** 0.5,
    }
    print(" ".join(f"{key} {v:.4g}" if isinstance(v, float) else v for key, v in row.items()))
    return row


def _error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


if __name__ == "__main__":
    run_cli(main, MissingValues, __doc__)
