"""IW, defensive IW, the jackknife and AIS side by side on the same test images of a trained run.

python -m benchmarks.estimators RUN [--images 100]
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import pyro_vae as pv
from benchmarks.harness import RESULTS, run_cli, write
from pyro_vae.runs.config_file import train_from
from pyro_vae.runs.experiment import prepare


@dataclass(frozen=True)
class Estimators:
    """What is scored, and where the figures go."""

    run: tyro.conf.Positional[Path]
    """A run's folder."""
    images: int = 100
    """Test images."""
    out: Path = RESULTS
    """Where estimators.json goes."""


def main(asked: Estimators) -> None:
    """Score the same images by every estimator, and print them with their errors."""
    experiment = prepare(train_from(asked.run / "config.toml"))
    x, words = experiment.images("test", asked.images)
    model, guide = pv.load(asked.run)
    protocol = {**experiment.observed.protocol, **words, "run": asked.run.name}
    rows: dict[str, dict[str, Any]] = {}

    def score(name: str, estimate: Any) -> Any:
        started = time.perf_counter()
        result = estimate()
        rows[name] = {**result.to_dict(), "seconds": time.perf_counter() - started}
        print(f"{name} ({rows[name]['seconds']:.0f} s)\n{result}\n", flush=True)
        return result

    plain = score(
        "IW-5000", lambda: pv.log_marginal(model, guide, x, num_samples=5000, protocol=protocol)
    )
    rows["IW-5000, jackknifed"] = {"mean": plain.debiased, "se_mc": plain.se_mc}
    wide = score(
        "IW-5000, defensive",
        lambda: pv.log_marginal(
            model, guide, x, num_samples=5000, proposal="Defensive", protocol=protocol
        ),
    )
    score(
        "IW-50000", lambda: pv.log_marginal(model, guide, x, num_samples=50_000, protocol=protocol)
    )
    annealed = score("AIS, T = 1000, 8 chains", lambda: pv.ais(model, guide, x, protocol=protocol))
    for name, other in (("IW-5000", plain), ("IW-5000, defensive", wide)):
        difference = annealed.log_px - other.log_px
        rows[f"AIS − {name}"] = {
            "mean": float(difference.mean()),
            "se": float(difference.std() / len(x) ** 0.5),
        }
        print(
            f"AIS − {name}: {difference.mean():+.3f} ± {difference.std() / len(x) ** 0.5:.3f} "
            "nats (paired)"
        )
    write("estimators", {"images": asked.images, "rows": rows}, asked.out)


if __name__ == "__main__":
    run_cli(main, Estimators, __doc__)
