"""Simulation-based calibration (SBC) of a guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.latents import guide_draws, join
from pyro_vae.analysis.simulate import simulate
from pyro_vae.formatting import Result
from pyro_vae.pair.log_weights import refuse_no_latents, refuse_unscorable
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.rng import check_seed, mix
from pyro_vae.validation import check_count

BATCH = 250
NOTABLE = 1e-3
"""A p-value below which a dimension is called out, after division by the number of dimensions
(Bonferroni).
"""


@dataclass(frozen=True, eq=False)
class SBC(Result):
    """Ranks of the true z among the guide's draws, on images simulated from the model.

    If the guide is the model's posterior, every rank is uniform on 0 … L.

    Attributes:
        ranks: by site, ``(N, D)``, 0 … L.
        p_values: by site, ``(D,)``: Kolmogorov–Smirnov against the uniform distribution.
        num_draws: L.

    Reference:
        Talts et al. 2018.
    """

    figures: ClassVar[tuple[str, ...]] = ("p_values", "smallest_p", "num_draws", "size")

    ranks: dict[str, Tensor]  # by site, (N, D), 0 … L
    p_values: dict[str, Tensor]  # by site, (D,), Kolmogorov–Smirnov against the uniform
    num_draws: int  # L

    @property
    def smallest_p(self) -> float:
        """The smallest p-value times their number, at most 1 (Bonferroni)."""
        every = torch.cat(list(self.p_values.values()))
        return min(1.0, float(every.min()) * len(every))

    @property
    def size(self) -> int:
        """Simulated images."""
        return len(next(iter(self.ranks.values())))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Whether the ranks can be those of a calibrated guide."""
        if self.smallest_p < NOTABLE:
            return (f"the guide is not the model's posterior: {self._how()}",)
        return ()

    def lines(self) -> list[str]:
        """The smallest p-value, and those of each site."""
        line = f"SBC: {self.size} simulated images, {self.num_draws} draws each; smallest p "
        lines = [f"{line}{self.smallest_p:.2g} (Bonferroni)"]
        for name, values in self.p_values.items():
            shown = " ".join(f"{p:.2g}" for p in values.tolist()[:20])
            lines.append(f"  {name}: KS p by dimension {shown}{' …' if len(values) > 20 else ''}")
        return lines

    def _how(self) -> str:
        """In words, of the dimension with the smallest p-value: where the truth is among the
        draws.
        """
        name = min(self.p_values, key=lambda site: float(self.p_values[site].min()))
        unit = int(self.p_values[name].argmin())
        place = (self.ranks[name][:, unit].double() + 0.5) / (self.num_draws + 1)
        shift, spread = float(place.mean() - 0.5), float(place.var() * 12)
        words = "too narrow" if spread > 1 else "too wide"
        if abs(shift) > abs(spread - 1) / 4:
            words = "too low" if shift > 0 else "too high"
        return f"{name}[{unit}] is {words}"


@takes_fields
def sbc_ranks(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    size: int = 1000,
    num_draws: int = 99,
    seed: int = 0,
    like: Tensor | None = None,
    device: str | torch.device = "auto",
    **fields: Any,
) -> SBC:
    """Simulation-based calibration (SBC): is the guide the model's posterior?

    It simulates z* ~ p(z), x ~ p(x | z*), and ranks each dimension of z* among ``num_draws`` draws
    of q(z | x). If q is the posterior, the ranks are uniform. Ties (discrete latents) are broken at
    random.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        size: simulated images.
        num_draws: L, draws of q(z | x) for each image; ranks are 0 … L.
        seed: seed of the simulation and the draws.
        like: a few images ``(≥ 1, *event_shape)``, for a model that takes no ``size``; only their
            shape is used.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        **fields: what the model is conditioned on, ``size`` rows.

    Returns:
        `SBC`: the ranks, and for each dimension a Kolmogorov–Smirnov p-value against the uniform.

    Raises:
        UserError: the guide has no density; the model can't be run without images to imitate.

    Reference:
        Talts et al. 2018, "Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration".
    """
    for name, value in (("size", size), ("num_draws", num_draws)):
        check_count(name, value)
    check_seed(seed)
    simulated = simulate(model, guide, size, like, device, seed, fields)
    parts: list[dict[str, Tensor]] = []
    # a stream of its own: under one seed the guide would draw the very numbers that made the truth
    given = simulated.x, BATCH, device, mix(seed, 1), simulated.fields
    with visit_images(model, guide, *given) as (pair, batches):
        for images, named in batches:
            refuse_no_latents(pair.structure(images, named))
            refuse_unscorable(pair, images, named)
            parts.append(guide_draws(pair, images, named, num_draws))
        drawn = join(parts, dim=1)
        ranks = {
            name: _ranks(simulated.latents[name], value).cpu() for name, value in drawn.items()
        }
        p_values = {name: _uniformity(value, num_draws) for name, value in ranks.items()}
    return SBC(ranks, p_values, num_draws)


def _ranks(truth: Tensor, drawn: Tensor) -> Tensor:
    """The number of draws ``(L, B, …)`` below the truth ``(B, …)``, ties by lot: ``(B, D)``."""
    below, equal = (drawn < truth).sum(0), (drawn == truth).sum(0)
    lot = (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long().clamp(max=equal)
    return (below + lot).reshape(len(truth), -1)


def _uniformity(ranks: Tensor, num_draws: int) -> Tensor:
    """Kolmogorov–Smirnov p-values of ``(rank + U)/(L + 1)``, which is uniform on [0, 1] where ranks
    are uniform: ``(D,)``.
    """
    from scipy.stats import kstest

    place = (ranks.double() + torch.rand(ranks.shape, dtype=torch.float64)) / (num_draws + 1)
    return torch.tensor(
        [float(kstest(place[:, d].numpy(), "uniform").pvalue) for d in range(place.shape[1])]
    )
