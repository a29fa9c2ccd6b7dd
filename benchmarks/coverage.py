"""How often an image's nominal 95% interval, L − bias ± 1.96 se, holds the exact log p(x): pPCA,
300 repetitions.

python -m benchmarks.coverage
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, run_cli, write
from pyro_vae import LogMarginal, log_marginal
from tests.support.exact import ppca

IMAGES = 20
CASES = [  # latent dimensions, the guide's sd over the posterior's, draws
    (3, 0.85, 1000),
    (3, 1.3, 1000),
    (5, 0.9, 1000),
    (5, 0.8, 1000),
    (5, 0.6, 1000),
    (5, 1.5, 1000),
    (10, 0.9, 1000),
    (10, 0.8, 1000),
    (10, 0.6, 1000),
]


@dataclass(frozen=True)
class Coverage:
    """How long, and where to."""

    repetitions: int = 300
    """Of each image."""
    out: Path = RESULTS
    """Where coverage.json goes."""


def covers(result: LogMarginal, log_px: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each interval holds the truth, and whether its diagnostics vouch for it: k̂ < 0.5 and
    ESS ≥ 300.
    """
    bias = -result.se.square() / 2
    inside = (result.log_px - bias - log_px).abs() <= 1.96 * result.se
    return inside, (result.khat < 0.5) & (result.ess >= 300)


def measure(
    latent_dim: int, widen: float, num_samples: int, repetitions: int, proposal: str = "guide"
) -> dict[str, Any]:
    """Coverage by image, and of all intervals with and without the two conditions. A copy of an
    image is a repetition.
    """
    case = ppca(IMAGES, num_pixels=latent_dim + 3, latent_dim=latent_dim, widen=widen)
    x, log_px = case.x.repeat(repetitions, 1), case.log_px.repeat(repetitions)
    result = log_marginal(
        case.model,
        case.guide,
        x,
        num_samples=num_samples,
        device="cpu",
        compile="graph",
        proposal=proposal,
    )
    inside, sound = (part.reshape(repetitions, IMAGES).double() for part in covers(result, log_px))
    runs = sound.sum(0)
    by_image = ((inside * sound).sum(0) / runs)[runs >= 0.9 * repetitions]
    return {
        "latent_dim": latent_dim,
        "sd_ratio": widen,
        "num_samples": num_samples,
        "proposal": proposal,
        "error": float((result.log_px - log_px).mean()),
        "mean_khat": float(result.khat.mean()),
        "median_ess": float(result.ess.median()),
        "coverage_all": float(inside.mean()),
        "sound_share": float(sound.mean()),
        "coverage_sound": float((inside * sound).sum() / sound.sum())
        if bool(sound.any())
        else None,
        "images_sound": len(by_image),
        "least_by_image": float(by_image.min()) if len(by_image) else None,
        "most_by_image": float(by_image.max()) if len(by_image) else None,
    }


def rows(repetitions: int) -> Iterator[dict[str, Any]]:
    """All cases with the guide, and the defensive mixture where the guide alone is too narrow."""
    for latent_dim, widen, num_samples in CASES:
        yield measure(latent_dim, widen, num_samples, repetitions)
    yield measure(10, 0.6, 1000, repetitions, "Defensive")


def main(asked: Coverage) -> None:
    """Print the table and write it."""
    torch.set_num_threads(1)
    table = []
    print(
        " d  sd    K     proposal   error    k̂     ESS   covered  sound  covered where sound  by "
        "image (images)"
    )
    for row in rows(asked.repetitions):
        table.append(row)
        sound = "—" if row["coverage_sound"] is None else f"{row['coverage_sound']:.3f}"
        spread = "—"
        if row["images_sound"]:
            spread = (
                f"{row['least_by_image']:.3f} … {row['most_by_image']:.3f} ({row['images_sound']})"
            )
        print(
            f"{row['latent_dim']:2d}  {row['sd_ratio']:<4}  {row['num_samples']}  "
            f"{row['proposal']:<9}  {row['error']:+.4f}  {row['mean_khat']:+.2f}  "
            f"{row['median_ess']:5.0f}  {row['coverage_all']:.3f}    {row['sound_share']:.2f}   "
            f"{sound:<19}  {spread}",
            flush=True,
        )
    write(
        "coverage", {"repetitions": asked.repetitions, "images": IMAGES, "rows": table}, asked.out
    )


if __name__ == "__main__":
    run_cli(main, Coverage, __doc__)
