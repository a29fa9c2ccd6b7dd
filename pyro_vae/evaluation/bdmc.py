"""Bidirectional Monte Carlo (BDMC): bounds of log p(x) from both sides on simulated images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.analysis.simulate import simulate
from pyro_vae.evaluation.annealing import Settings, Tile, annealed_tiles
from pyro_vae.evaluation.estimate import Estimate, difference, over_images
from pyro_vae.evaluation.setup import Setup
from pyro_vae.formatting import figure, quantity, standard_error
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.rng import mix
from pyro_vae.tensors import as_images
from pyro_vae.validation import check_count


@dataclass(frozen=True, eq=False, kw_only=True)
class BDMC(Estimate):
    """Lower and upper bounds of log p(x), in expectation, on N simulated images; nats.

    Attributes:
        lower_px: log of the mean forward weight, ``(N,)``, float64.
        upper_px: −log of the mean reverse weight, ``(N,)``, float64.
        acceptance: HMC's acceptance rate in both directions, ``(N,)``.
        x: the simulated images, ``(N, *event_shape)``.
        num_samples: chains for each image, in each direction.
    """

    columns: ClassVar[tuple[str, ...]] = ("lower_px", "upper_px", "gap_px", "acceptance")
    figures: ClassVar[tuple[str, ...]] = (
        *("lower", "upper", "gap", "se_lower", "se_upper", "se_gap", "num_samples", "num_images"),
        *("acceptance", "protocol", "warnings"),
    )
    hidden: ClassVar[tuple[str, ...]] = (*Estimate.hidden, "num_chains", "num_steps")

    lower_px: Tensor  # (N,) float64, log of the mean forward weight
    upper_px: Tensor  # (N,) float64, −log of the mean reverse weight
    acceptance: Tensor  # (N,) of HMC's proposals, forward and reverse together
    x: Tensor  # (N, *event_shape), the simulated images
    num_samples: int  # chains an image, each way

    gap_px = difference("upper_px", "lower_px", "Upper minus lower, ``(N,)``.")
    lower = over_images("lower_px", "Its expectation is at most the mean of log p(x).")
    upper = over_images("upper_px", "Its expectation is at least the mean of log p(x).")
    gap = over_images("gap_px", "Upper minus lower, the two errors together.")
    se_lower = over_images("lower_px", number=standard_error)
    se_upper = over_images("upper_px", number=standard_error)
    se_gap = over_images(
        "gap_px", "Paired by image, and so much smaller than the others'.", standard_error
    )

    def headline(self) -> list[str]:
        """Both bounds and their gap."""
        name, said = quantity(self.protocol), self.protocol
        line = f"{figure(self.lower)} ≤ {name} ≤ {figure(self.upper)} nats in expectation (BDMC, "
        line += f"T = {said['num_steps']}, {self.num_samples} chains, N = {self.num_images} "
        line += f"simulated images)  gap {figure(self.gap, 3)} ±{self.se_gap:.3f}  "
        line += f"images ±{self.se_lower:.2f}  acceptance {float(self.acceptance.mean()):.2f}"
        line += "  the bounds cross: use more images or chains" * (self.gap < 0)
        of_data = "whose true z is known: on real data there is no upper bound"
        return [line, f"  about the model's own images, {of_data}"]


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
    ignore_scales: bool = False,
    **fields: Any,
) -> BDMC:
    """Bound log p(x) from below and above on simulated images: bidirectional Monte Carlo (BDMC).

    It simulates (x, z) ~ p(x, z). `ais` gives the lower bound. The reverse path starts at the true
    z, which is an exact draw of p(z | x), and anneals towards the guide: there E[w] = 1/p(x), which
    gives the upper bound. Both directions use the same fixed HMC kernel. The gap shows how far AIS
    is off **on simulated images**. Whether real images are like them is for you to judge.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        size: N, simulated images.
        num_steps, num_chains, num_leapfrog, schedule, target_acceptance: as in `ais`.
        like: a few images ``(≥ 1, *event_shape)``, for a model that can't be called as
            ``model(None, size=n)``; only their shape is used.
        seed, device, compile, progress: as in `ais`.
        ignore_scales: as in `log_marginal`.
        **fields: what the model is conditioned on, ``size`` rows.

    Returns:
        A `BDMC`: both bounds of each image in nats, and their gap with its standard error.

    Raises:
        UserError: as `ais`; a model that observes anything but x.

    Reference:
        Grosse, Ghahramani and Adams 2015, "Sandwiching the Marginal Likelihood Using Bidirectional
        Monte Carlo"; Grosse, Ancha and Roy 2016.
    """
    check_count("size", size)
    settings = Settings(num_steps, num_chains, num_leapfrog, schedule, target_acceptance)
    setup = Setup(model, guide, seed, device, progress, ignore_scales)
    few = None if like is None else as_images(like, "like")
    made = simulate(model, guide, size, few, device, mix(seed, 0) % 2**32, fields)
    with setup.running():
        found = [
            _both_ways(tile, made.latents)
            for tile in annealed_tiles(setup, made.x, made.fields, settings, compile, runs=2)
        ]
        how = {"estimator": f"BDMC-{num_steps}", "num_samples": num_chains}
        said = setup.protocol(how, {"data": "simulated from the model"}, settings.said())
    lower, upper, acceptance = torch.cat(found, dim=1)
    return BDMC(
        lower_px=lower,
        upper_px=upper,
        acceptance=acceptance,
        x=made.x.cpu(),
        num_samples=num_chains,
        protocol=said,
        notes=setup.notes,
    )


def _both_ways(tile: Tile, latents: dict[str, Tensor]) -> Tensor:
    """(lower, upper, acceptance) of one tile, ``(3, B)`` float64 on the CPU; ``latents`` are the
    true ones of all images.
    """
    x, fields = tile.batch
    rows = tile.start + torch.arange(len(x), device=x.device) % tile.num_images
    truth = {name: value[rows] for name, value in latents.items()}
    forward = tile.anneal(tile.draw(), tile.betas)
    start = tile.target.point(tile.space.locate(x, fields, truth))
    reverse = tile.anneal(start, tile.betas[::-1])
    logs = (run.log_weights.logsumexp(0) for run in (forward, reverse))
    means = [total - log(len(forward.log_weights)) for total in logs]
    lower, upper, acceptance = means[0], -means[1], (forward.acceptance + reverse.acceptance) / 2
    return torch.stack((lower, upper, acceptance.double()))[:, : tile.num_images].cpu()
