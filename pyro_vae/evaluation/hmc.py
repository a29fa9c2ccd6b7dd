"""Hamiltonian Monte Carlo (HMC) for AIS: many chains at many images, a step size for each image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain

import torch
from torch import Tensor

from pyro_vae.evaluation.traced import TileTarget
from pyro_vae.evaluation.unconstrained import Point

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
