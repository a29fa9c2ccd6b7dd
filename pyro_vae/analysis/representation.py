"""The results of `diagnose`, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.analysis.mutual_information import Information
from pyro_vae.formatting import Result, figure

ACTIVE = 0.01
"""Variance over images of a unit's posterior mean, above which it is active (Burda et al. 2016,
section 5.2).
"""

IDLE_KL = 0.05
"""Nats: an inactive unit that costs more is a posterior that differs from the prior and says
nothing of x.
"""


@dataclass(frozen=True, eq=False)
class ActiveUnits(Result):
    """Units u with Var_x(E_q[u | x]) > 0.01 (Burda et al. 2016); a unit is one number of one latent
    site.
    """

    figures: ClassVar[tuple[str, ...]] = ("count", "num_units", "threshold", "variances")
    threshold: ClassVar[float] = ACTIVE

    variances: dict[str, Tensor]  # by site, (D,)
    num_draws: int

    @property
    def active(self) -> dict[str, Tensor]:
        """By site, ``(D,)``."""
        return {name: values > ACTIVE for name, values in self.variances.items()}

    @property
    def count(self) -> int:
        """Active units."""
        return sum(int(values.sum()) for values in self.active.values())

    @property
    def num_units(self) -> int:
        """All units."""
        return sum(len(values) for values in self.variances.values())

    def lines(self) -> list[str]:
        """The number of active units, and the variances by site."""
        line = f"active units: {self.count} of {self.num_units} (variance of the posterior mean "
        line += f"over images > {ACTIVE:g})"
        return [line, *_by_site(self.variances, "variances, largest first")]


@dataclass(frozen=True)
class RateDistortion(Result):
    """Nats per image: ELBO = −(rate + distortion) (Alemi et al. 2018). Errors: the images as a
    sample.
    """

    rate: float  # E_x KL(q(z | x) ‖ p(z))
    rate_se: float
    distortion: float  # −E_x E_q log p(x | z)
    distortion_se: float
    elbo: float
    elbo_se: float
    num_images: int
    num_draws: int

    def lines(self) -> list[str]:
        """The three with their errors."""
        names = {"rate": "rate", "distortion": "distortion", "elbo": "ELBO"}
        parts = (
            f"{words} {figure(getattr(self, name))} ± {getattr(self, name + '_se'):.2f}"
            for name, words in names.items()
        )
        return [f"{', '.join(parts)} nats (N = {self.num_images}, {self.num_draws} draws each)"]


@dataclass(frozen=True, eq=False)
class DimensionKL(Result):
    """E_x KL(q(z | x) ‖ p(z)) by dimension, in nats; entries add up to the rate.

    A site whose distributions do not factorise over its dimensions (a flow, a full covariance, a
    mixture) has one entry, for all of them.
    """

    figures: ClassVar[tuple[str, ...]] = ("values", "how", "total")

    values: dict[str, Tensor]  # by site, (D,) or (1,)
    how: dict[str, str]  # by site, how it was computed

    @property
    def total(self) -> float:
        """The rate."""
        return float(torch.cat(list(self.values.values())).sum())

    def lines(self) -> list[str]:
        """The rate, how it was computed, and its parts by site."""
        how = [f"  {name}: {words}" for name, words in self.how.items()]
        shown = _by_site(self.values, "nats, largest first")
        return [f"KL by dimension, in all {self.total:.2f} nats", *how, *shown]


@dataclass(frozen=True, eq=False)
class Diagnostics(Result):
    """All of them, of one set of images."""

    units: ActiveUnits
    rate_distortion: RateDistortion
    kl: DimensionKL
    information: Information

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the latent is used less than it was meant to be."""
        count, number, found = self.units.count, self.units.num_units, []
        if count == 0:
            found.append(
                "posterior collapse: no unit is active, so the guide's posterior is the same "
                "for every image. Try a KL warm-up, a smaller KL weight, free bits, or a "
                "weaker decoder"
            )
        elif count < number:
            found.append(
                f"{number - count} of {number} units are inactive: the model uses {count} "
                "dimensions of its latent"
            )
        for name, active in self.units.active.items():
            cost = self.kl.values[name]
            if len(cost) == len(active) and bool((idle := ~active & (cost > IDLE_KL)).any()):
                found.append(
                    f"{int(idle.sum())} inactive units of {name} cost "
                    f"{float(cost[idle].sum()):.2f} nats: their posterior differs from the "
                    "prior, but does not depend on x"
                )
        if self.information.at_ceiling:
            found.append(
                f"the mutual information is at its ceiling, log {self.information.num_images}: "
                "use more images, or read the number as a lower bound"
            )
        return tuple(found)

    def lines(self) -> list[str]:
        """Those of the parts."""
        return [str(part) for part in (self.rate_distortion, self.units, self.kl, self.information)]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        parts: dict[str, Result] = {
            "active_units": self.units,
            "rate_distortion": self.rate_distortion,
        }
        parts |= {"kl_by_dimension": self.kl, "information": self.information}
        found = {name: part.to_dict() for name, part in parts.items()}
        return {**found, "warnings": list(self.warnings)}


def _by_site(values: Mapping[str, Tensor], words: str) -> list[str]:
    lines = []
    for name, each in values.items():
        shown = " ".join(
            f"{value:.3g}" for value in each.sort(descending=True).values.tolist()[:20]
        )
        lines.append(f"  {name}: {words}: {shown}{' …' if len(each) > 20 else ''}")
    return lines
