"""Annealed importance sampling of one tile of images: the schedule, and the weights in both
directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.batches import Batch
from pyro_vae.evaluation.hmc import Kernel, tune
from pyro_vae.evaluation.setup import Setup
from pyro_vae.evaluation.tiling import even_tiles, padded, tiled
from pyro_vae.evaluation.traced import TileTarget, make_target
from pyro_vae.evaluation.unconstrained import Point, Unconstrained
from pyro_vae.progress import progress_bar
from pyro_vae.validation import check_choice, check_count, check_number

SIGMOID_WIDTH = 4.0
"""δ of the sigmoid schedule (Wu et al. 2017, appendix; Grosse et al. 2016)."""
SCALE_DRAWS = 64
"""Draws of the guide that its standard deviations are estimated from: an error of 9%."""


@dataclass(frozen=True)
class Settings:
    """How to anneal."""

    num_steps: int  # T
    num_chains: int  # C
    num_leapfrog: int  # L
    schedule: str
    target_acceptance: float

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_chains", "num_leapfrog"):
            check_count(name, getattr(self, name))
        self.betas()
        words = "a probability between 0 and 1"
        check_number("target_acceptance={!r}", self.target_acceptance, words, high=1, ends="()")

    def said(self) -> dict[str, Any]:
        """The protocol's part."""
        names = ("num_steps", "num_chains", "num_leapfrog", "schedule")
        return {name: getattr(self, name) for name in names}

    def betas(self) -> list[float]:
        """β_0 = 0 < … < β_T = 1."""
        check_choice("schedule", self.schedule, SCHEDULES)
        times = torch.linspace(0.0, 1.0, self.num_steps + 1, dtype=torch.float64)
        betas = SCHEDULES[self.schedule](times)
        return ((betas - betas[0]) / (betas[-1] - betas[0])).tolist()


SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda t: torch.sigmoid(SIGMOID_WIDTH * (2.0 * t - 1.0)),
    "linear": lambda t: t,
}


@dataclass(frozen=True)
class Annealed:
    """What a run leaves."""

    log_weights: Tensor  # (C, B) float64, in nats
    acceptance: Tensor  # (B,), mean over the path


def anneal(
    target: TileTarget, at: Point, betas: Sequence[float], kernel: Kernel, tick: Callable[[], None]
) -> Annealed:
    """log w = Σ_t (β_t − β_{t−1}) (log p − log q)(u_{t−1}), u_t a move of u_{t−1} at β_t (Neal
    2001, equations 10–11).

    From draws of q with β rising, E[w] = p(x); from draws of p(u | x) with β falling, E[w] =
    1/p(x).
    """
    log_weights = torch.zeros_like(at.log_q, dtype=torch.float64)
    acceptance = torch.zeros_like(kernel.step)
    for before, after in pairwise(betas):
        log_weights += (after - before) * (at.log_p.double() - at.log_q.double())
        if after != betas[-1]:  # a last move would change no weight
            at, accepted = kernel.move(target, at, after)
            acceptance += accepted
        tick()
    moves = len(betas) - 2
    return Annealed(
        log_weights, acceptance / moves if moves else torch.full_like(acceptance, torch.nan)
    )


@dataclass(frozen=True)
class Tile:
    """A tile of images, ready to be annealed; its first image is the set's number ``start``."""

    start: int
    num_images: int  # rows beyond these only fill the tile
    batch: Batch
    space: Unconstrained
    target: TileTarget
    kernel: Kernel  # frozen
    betas: list[float]
    tick: Callable[[], None]

    def draw(self) -> Point:
        """Fresh draws of the guide."""
        return self.target.point(self.space.draw(*self.batch))

    def anneal(self, start: Point, betas: Sequence[float]) -> Annealed:
        """One run of all chains."""
        return anneal(self.target, start, betas, self.kernel, self.tick)


def annealed_tiles(
    setup: Setup, x: Any, fields: Mapping[str, Any], settings: Settings, compile: str, runs: int
) -> Iterator[Tile]:
    """All images of ``x``, each tile to be annealed ``runs`` times; inside `Setup.running`.

    Raises:
        UserError: the number would not be log p(x), or the pair has no such path.
    """
    setup.begin(x, fields, lambda number: even_tiles(number, settings.num_chains, setup.rows))
    size, source = setup.source.batch_size, setup.source
    tiles = setup.tiles(size)
    space = Unconstrained(setup.pair, *tiles[0], settings.num_chains)
    target, how = make_target(space, compile, *tiles)
    setup.say(f"annealing: {how}")
    torch.manual_seed(setup.seed)
    steps = runs * settings.num_steps * ceil(source.num_images / size)
    with progress_bar(steps, "step", setup.progress) as bar:
        for start, images, named in tiled(source, size, False):
            setup.see((images, named))
            batch = padded(images, named, size, setup.pair)
            on_tile = target.tile(*batch)
            kernel = _prepare_kernel(space, on_tile, batch, settings)
            yield Tile(
                start, len(images), batch, space, on_tile, kernel, settings.betas(), bar.update
            )


def _prepare_kernel(
    space: Unconstrained, target: TileTarget, batch: Batch, settings: Settings
) -> Kernel:
    """Scales and step sizes from draws and chains of their own, frozen afterwards."""
    times = max(1, ceil(SCALE_DRAWS / settings.num_chains))
    draws = torch.cat([space.draw(*batch) for _ in range(times)])
    scale = draws.std(0) if len(draws) > 1 else torch.ones_like(draws[0])
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    if settings.num_steps == 1:  # importance sampling: nothing moves
        return Kernel(torch.ones_like(scale[:, 0]), scale, settings.num_leapfrog)
    start = target.point(space.draw(*batch))
    return tune(target, start, scale, settings.num_leapfrog, settings.target_acceptance)
