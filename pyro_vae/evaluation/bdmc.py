"""Bidirectional Monte Carlo: log p(x) from below and from above, on images of the model's own
(Grosse et al. 2015).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import ambient
from pyro_vae.analysis.simulate import Simulated, simulate
from pyro_vae.devices import find_device
from pyro_vae.evaluation.annealing import Settings, anneal, prepare_kernel, tiles
from pyro_vae.evaluation.importance import running
from pyro_vae.evaluation.protocol import Quantity
from pyro_vae.evaluation.tiling import rows_of
from pyro_vae.evaluation.traced_target import Target, make_target
from pyro_vae.evaluation.unconstrained import Unconstrained
from pyro_vae.fields import as_fields
from pyro_vae.formatting import figure, protocol_line, quantity
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.progress import progress_bar
from pyro_vae.rng import check_seed, mix
from pyro_vae.tensors import as_images
from pyro_vae.validation import check_count


@dataclass(frozen=True, eq=False)
class BDMC:
    """Bounds of log p(x) in expectation, on N simulated images. All in nats."""

    lower_px: Tensor  # (N,) float64, log of the mean forward weight
    upper_px: Tensor  # (N,) float64, −log of the mean reverse weight
    acceptance: Tensor  # (N,) of HMC's proposals, forward and reverse together
    x: Tensor  # (N, *event_shape), the simulated images
    num_samples: int  # chains an image, each way
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.lower_px)

    @property
    def gap_px(self) -> Tensor:
        """Upper minus lower, ``(N,)``."""
        return self.upper_px - self.lower_px

    @property
    def lower(self) -> float:
        """Mean lower bound: its expectation is at most the mean of log p(x)."""
        return float(self.lower_px.mean())

    @property
    def upper(self) -> float:
        """Mean upper bound: its expectation is at least the mean of log p(x)."""
        return float(self.upper_px.mean())

    @property
    def gap(self) -> float:
        """Upper minus lower: the two errors together."""
        return float(self.gap_px.mean())

    @property
    def se_lower(self) -> float:
        """Standard error of ``lower``, the images being a sample, Monte Carlo included; NaN for one
        image.
        """
        return _se(self.lower_px)

    @property
    def se_upper(self) -> float:
        """That of ``upper``."""
        return _se(self.upper_px)

    @property
    def se_gap(self) -> float:
        """That of ``gap``, paired by image: much smaller than the other two."""
        return _se(self.gap_px)

    def __str__(self) -> str:
        said = self.protocol
        line = (
            f"{figure(self.lower)} ≤ {quantity(said)} ≤ {figure(self.upper)} nats in expectation "
        )
        line += f"(BDMC, T = {said['num_steps']}, "
        line += f"{self.num_samples} chains, N = {self.num_images} simulated images)  gap {figure(self.gap, 3)} "
        line += f"±{self.se_gap:.3f}  images ±{self.se_lower:.2f}  acceptance {float(self.acceptance.mean()):.2f}"
        hidden = ("num_samples", "num_chains", "num_images", "num_steps")
        return "\n".join(
            [
                line,
                "  about the model's own images, whose true z is known: on real data there is no "
                "upper bound",
                protocol_line(said, *hidden),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names."""
        names = (
            "lower",
            "upper",
            "gap",
            "se_lower",
            "se_upper",
            "se_gap",
            "num_samples",
            "num_images",
        )
        figures = {name: getattr(self, name) for name in names}
        return {**figures, "acceptance": float(self.acceptance.mean()), "protocol": self.protocol}


@takes_fields
def bdmc(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    size: int = 100,
    num_steps: int = 1000,
    num_chains: int = 8,
    num_leapfrog: int = 5,
    schedule: str = "sigmoid",
    target_acceptance: float = 0.65,
    like: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = False,
    **fields: Any,
) -> BDMC:
    """Simulate ``size`` pairs (x, z) ~ p(x, z), and bound each log p(x) by `ais` and by its reverse
    from the true z.

    The reverse path starts at an exact draw of p(z | x) and anneals towards the guide: E[w] =
    1/p(x) (Grosse et al. 2016). Both directions use the same frozen kernel. The gap tells how far
    AIS is off **on such images**; how like them real ones are is for the caller to judge.

    Args:
        like: a few images, for a model that can't be called as ``model(None, size=n)``; only their
            shape is used.
        **fields: what the model is conditioned on, ``size`` rows.

    Raises:
        UserError: as `ais`; a model that observes anything but x itself.
    """
    check_count("size", size)
    check_seed(seed)
    settings = Settings(num_steps, num_chains, num_leapfrog, schedule, target_acceptance)
    settings.check()
    place = find_device(device)
    few = None if like is None else as_images(like, "like")
    made = simulate(model, guide, size, few, place, mix(seed, 0) % 2**32, as_fields(fields, size))
    pair = Pair.of(model, guide)
    tile = tiles(size, num_chains, rows_of(pair, place))
    starts = range(0, size, tile)
    with (
        running(pair, place),
        progress_bar(2 * num_steps * len(starts), "step", progress) as bar,
    ):
        rows = torch.arange(tile, device=place)
        first, others = (
            (x, named) for x, named, _ in (made.rows(rows), made.rows((rows + tile) % size))
        )
        target, how = make_target(Unconstrained(pair, *first, num_chains), compile, first, others)
        if progress:
            tqdm.write(f"annealing: {how}", file=sys.stderr)
        torch.manual_seed(seed)
        found = [_both_ways(target, made, start, tile, settings, bar.update) for start in starts]
        scored = Quantity(pair)
        scored.see((made.x, made.fields))
        known, _ = scored.told()
    lower, upper, acceptance = torch.cat(found, dim=1)
    said = {
        "num_samples": num_chains,
        "num_images": size,
        "precision": str(made.x.dtype).removeprefix("torch."),
        **ambient.said(place),
        "seed": seed,
        **settings.said(),
        **known,
        "data": "simulated from the model",
    }
    return BDMC(lower, upper, acceptance, made.x.cpu(), num_chains, said)


def _both_ways(
    target: Target,
    made: Simulated,
    start: int,
    tile: int,
    settings: Settings,
    tick: Callable[[], Any],
) -> Tensor:
    """(lower, upper, acceptance) of one tile, ``(3, B)`` float64 on the CPU; rows that only fill
    the tile are dropped.
    """
    num_images = min(tile, len(made.x) - start)
    x, fields, latents = made.rows(start + torch.arange(tile, device=made.x.device) % num_images)
    on_tile, space, betas = target.tile(x, fields), target.space, settings.betas()
    kernel = prepare_kernel(target, on_tile, x, fields, settings)
    forward = anneal(on_tile, on_tile.point(space.draw(x, fields)), betas, kernel, tick)
    reverse = anneal(
        on_tile, on_tile.point(space.locate(x, fields, latents)), betas[::-1], kernel, tick
    )
    lower, upper = _log_mean(forward.log_weights), -_log_mean(reverse.log_weights)
    acceptance = (forward.acceptance + reverse.acceptance) / 2
    return torch.stack((lower, upper, acceptance.double()))[:, :num_images].cpu()


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - log(len(log_weights))


def _se(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
