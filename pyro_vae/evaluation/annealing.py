"""Annealed importance sampling on one tile of images, forward and reverse: Hamiltonian Monte Carlo
along the path (many chains at many images, one step size an image), the schedule, the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.batches import Batch
from pyro_vae.evaluation.setup import Setup
from pyro_vae.evaluation.tiling import even_tiles, padded, tiled
from pyro_vae.evaluation.traced import TileTarget, make_target
from pyro_vae.evaluation.unconstrained import Point, Unconstrained
from pyro_vae.progress import progress_bar
from pyro_vae.validation import check_choice, check_count, check_number

FIRST_STEP = 0.5
"""In units of the guide's own standard deviation, where 1 would be a Gaussian's best for a few
dimensions.
"""
SWEEP = 50
"""Transitions of the pilot run between the guide and the posterior; it goes there, back, and there
again.
"""


@dataclass(frozen=True)
class Kernel:
    """HMC that leaves q^(1−β) p^β invariant for every β; its settings must not depend on the chains
    that it moves.
    """

    step: Tensor  # (B,)
    # (B, d), by which u is measured: the guide's standard deviation (a diagonal mass matrix)
    scale: Tensor
    num_leapfrog: int

    def move(self, target: TileTarget, at: Point, beta: float) -> tuple[Point, Tensor]:
        """One transition of every chain, and the acceptance probability's mean over the chains,
        ``(B,)``.
        """
        # the step varies, lest a trajectory be a whole half turn of a Gaussian, after which log p
        # is what it was
        jitter = 0.7 + 0.6 * torch.rand_like(self.step)
        stride = (self.step * jitter).unsqueeze(-1) * self.scale
        momentum = torch.randn_like(at.u)
        u, grad_q, grad_p = at.u, at.grad_q, at.grad_p
        new = at
        kick = momentum + 0.5 * stride * torch.lerp(grad_q, grad_p, beta)
        for i in range(self.num_leapfrog):
            u = u + stride * kick
            if i < self.num_leapfrog - 1:
                kick = kick + stride * torch.lerp(*target.gradients(u), beta)
            else:
                new = target.point(u)
                kick = kick + 0.5 * stride * torch.lerp(new.grad_q, new.grad_p, beta)
        before = _log_path(at, beta) - 0.5 * momentum.double().square().sum(-1)
        after = _log_path(new, beta) - 0.5 * kick.double().square().sum(-1)
        # a trajectory that left all numbers behind is rejected
        probability = (after - before).nan_to_num(nan=-torch.inf).clamp(max=0.0).exp()
        accepted = torch.rand_like(probability) < probability
        return _choose(accepted, new, at), probability.mean(0).to(self.step.dtype)


def tune(
    target: TileTarget,
    at: Point,
    scale: Tensor,
    num_leapfrog: int,
    target_acceptance: float,
    sweep: int = SWEEP,
) -> Kernel:
    """A pilot run from the guide's draws ``at``: step sizes whose acceptance, over the path's β, is
    the target's.

    Robbins–Monro on log ε, one image at a time, while β goes up, down and up again; the mean of log
    ε over the last two sweeps is kept. The chains that it moved are thrown away.
    """
    log_step = torch.full_like(scale[:, 0], FIRST_STEP).log()
    total, count = torch.zeros_like(log_step), 0
    up = [(i + 0.5) / sweep for i in range(sweep)]
    for i, beta in enumerate(chain(up, reversed(up), up)):
        at, acceptance = Kernel(log_step.exp(), scale, num_leapfrog).move(target, at, beta)
        log_step = log_step + 1.5 * (i + 1) ** -0.5 * (acceptance - target_acceptance)
        if i >= sweep:
            total, count = total + log_step, count + 1
    return Kernel((total / count).exp(), scale, num_leapfrog)


def _log_path(at: Point, beta: float) -> Tensor:
    """(1 − β) log q + β log p, ``(C, B)`` float64."""
    return torch.lerp(at.log_q.double(), at.log_p.double(), beta)


def _choose(accepted: Tensor, new: Point, old: Point) -> Point:
    picked = []
    for field in fields(Point):
        a, b = getattr(new, field.name), getattr(old, field.name)
        picked.append(torch.where(accepted.unsqueeze(-1) if a.dim() == 3 else accepted, a, b))
    return Point(*picked)


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
