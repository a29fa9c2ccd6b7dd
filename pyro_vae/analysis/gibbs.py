"""Metropolis-within-Gibbs draws of p(x | y) under a model p(x, z), where y is what is known of the
image x.

A chain has an image x and its latents z, and repeats three moves that leave p(x, z | y) invariant:

1. z' ~ q(z | x), accepted with min(1, p(x, z') q(z | x) / (p(x, z) q(z' | x))): a
Metropolis–Hastings step whose proposal
   is the guide (Mattei & Frellsen 2018, section 3.3). Without the test (``gibbs``) this is
   pseudo-Gibbs (Rezende et al. 2014, appendix F), whose law is that of the model only where the
   guide is the model's posterior.
2. z + γ (z₁ − z₂), z₁ and z₂ being two more draws of q(z | x), accepted with min(1, p(x, z') /
   p(x, z)), as the difference is as likely as its opposite. The first move alone leaves z where it
   is for a long time, as its weights vary by several nats: an x that is drawn pixel by pixel is
   not like those that the guide was fitted to. This one needs the guide's scale only, not its
   place; it moves the latents that have any real value, and is left out of ``gibbs``.
3. x given z and y, pixel by pixel (`Redraw`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.analysis.encode import mean_of
from pyro_vae.analysis.latents import Given, is_periodic, is_real
from pyro_vae.errors import UserError
from pyro_vae.formatting import Result
from pyro_vae.pair.layouts import draw_alone
from pyro_vae.pair.nodes import Fields, one_by_one
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.terms import Site, SiteTerms

UNTESTED = 0.1
"""The first part of a chain, in which every z' is accepted: from a poor start a tested proposal is
hardly ever.
"""
STRIDE = 1.5
"""γ √(2d) for d latent numbers: 2.38 is the best for a Gaussian of many (ter Braak 2006); below it
more is accepted.
"""
BURN_IN = 0.5
"""The part of a chain that no average counts."""
LOW_ACCEPTANCE = 0.05


@dataclass(frozen=True, eq=False)
class Restored(Result):
    """Draws of p(x | y) from K independent chains at each of N images, and their moments.

    Averages are over all chains, and over the second half of each chain.

    Attributes:
        samples: the chains' last states, ``(K, N, *event_shape)``.
        decoded: the mean of p(x | z) at the chains' last z, ``(K, N, *event_shape)``.
        mean: E[x | y], ``(N, *event_shape)``.
        sd: the standard deviation of x under p(x | y), ``(N, *event_shape)``.
        se: Monte Carlo standard error of ``mean``, from the differences of the K chains, ``(N,
            *event_shape)``; NaN for one chain.
        acceptance: the share of steps that move z, ``(N,)``; 1 for ``gibbs``, which tests none.
        method: ``metropolis`` or ``gibbs``.
        num_steps: steps of each chain.
    """

    figures: ClassVar[tuple[str, ...]] = ("acceptance", "method", "num_steps", "warnings")

    samples: Tensor  # (K, N, *event_shape), the chains' last states
    # (K, N, *event_shape), the mean of p(x | z) at the chains' last z, without regard to y
    decoded: Tensor
    mean: Tensor  # (N, *event_shape), E[x | y]
    sd: Tensor  # (N, *event_shape), the standard deviation of x under p(x | y)
    # (N, *event_shape), Monte Carlo standard error of the mean, from the K chains' own; NaN for one
    # chain
    se: Tensor
    acceptance: Tensor  # (N,), the share of steps that move z; 1 for pseudo-Gibbs, which tests none
    method: str
    num_steps: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the draws are to be read."""
        found = []
        if self.method == "gibbs":
            found.append(
                "pseudo-Gibbs: these are draws of p(x | y) only if the guide is the "
                "model's posterior"
            )
        if (stuck := float((self.acceptance < LOW_ACCEPTANCE).double().mean())) > 0.01:
            found.append(
                f"less than {LOW_ACCEPTANCE:.0%} of the steps move z in {stuck:.1%} of the "
                "images: their chains hardly move. Use more steps, or a guide nearer to the "
                "posterior"
            )
        return tuple(found)

    def lines(self) -> list[str]:
        """How many chains of what length, and how often they moved."""
        chains, images = self.samples.shape[:2]
        line = f"{images} images, {chains} chains of {self.num_steps} steps each ({self.method}); "
        return [f"{line}acceptance {float(self.acceptance.mean()):.2f}"]


Redraw = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]
"""``(known, x, draw)``, rows of chains, to x after a move that leaves p(x | z, y) invariant;
``draw()`` gives x ~ p(x | z), pixels independent.
"""


class Chains:
    """All chains at a batch of images, as rows: ``(K·B, *event_shape)``, chain by chain."""

    def __init__(
        self,
        pair: Pair,
        x: Tensor,
        fields: Fields,
        redraw: Callable[[Tensor, Callable[[], Tensor]], Tensor],
    ) -> None:
        self.pair, self.x, self.fields, self.redraw = pair, x, fields, redraw
        first = pair.run(x, fields)
        self.site = image_site_of(first.observed, x)
        self.z = {name: site.value for name, site in first.guide.items()}
        # (p(x | z), rows): at each row's z the law is the last one whose rows have it
        self.laws: list[tuple[Site, Tensor]] = []
        self.free = [n for n, site in first.guide.items() if _is_free(site, first.prior.get(n))]

    def run(self, num_chains: int, num_steps: int, method: str) -> Restored:
        """All steps of all chains; what is found is on the CPU."""
        untested, burn_in = round(UNTESTED * num_steps), round(BURN_IN * num_steps)
        lead = (num_chains, len(self.x) // num_chains)
        zeros = self.x.new_zeros(*lead, *self.x.shape[1:], dtype=torch.float64)
        total, squares, accepted = zeros, zeros, zeros.new_zeros(lead)
        for step in range(num_steps):
            moved = self.step(method, tested=step >= untested)
            if step >= burn_in:
                states = self.x.reshape(total.shape).double()
                total, squares = total + states, squares + states.square()
                accepted = accepted + moved.reshape(lead)
        kept = num_steps - burn_in
        means = total / kept
        mean = means.mean(0)
        sd = (squares.mean(0) / kept - mean.square()).clamp(min=0.0).sqrt()
        se = means.std(0) / num_chains**0.5 if num_chains > 1 else torch.full_like(mean, nan)
        x, decoded = (each.reshape(total.shape).cpu() for each in (self.x, self.pick(mean_of)))
        mean, sd, se = (each.to("cpu", x.dtype) for each in (mean, sd, se))
        return Restored(
            x, decoded, mean, sd, se, (accepted.mean(0) / kept).cpu(), method, num_steps
        )

    def step(self, method: str, tested: bool) -> Tensor:
        """All moves; which rows' z moved, ``(K·B,)``."""
        new = self.pair.run(self.x, self.fields)
        moved = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        if method == "metropolis":
            old = self._at(self.z)
            log_new, log_old = (each.log_weights()[0].double() for each in (new, old))
            moved = _accepted(log_new, log_old) if tested else ~log_new.isnan()
            self.laws = [(old.observed[self.site], torch.ones_like(moved))]
        else:
            self.laws = []
        self._take(new, moved)
        if method == "metropolis" and tested and self.free:
            moved = moved | self._shift(torch.where(moved, _log_joint(new), _log_joint(old)))
        self.x = self.redraw(self.x, self.draw)
        return moved

    def _shift(self, log_here: Tensor) -> Tensor:
        """The third move, from states with this log p(x, z), ``(K·B,)``: which rows took it."""
        first, second = self._draws(), self._draws()
        stride = STRIDE / (2 * sum(self.z[name][0].numel() for name in self.free)) ** 0.5
        shifted = {n: self.z[n] + stride * (first[n] - second[n]) for n in self.free}
        there = self._at({**self.z, **shifted})
        accepted = _accepted(_log_joint(there), log_here)
        self._take(there, accepted)
        return accepted

    def _at(self, z: Mapping[str, Tensor]) -> SiteTerms:
        with Given(z):
            return self.pair.run(self.x, self.fields)

    def _draws(self) -> dict[str, Tensor]:
        """Fresh ones of the guide."""
        at = self.pair.structure(self.x, self.fields).geometry
        nodes = draw_alone(self.pair.guide, self.x, self.fields, 1, at, on_rows=True)
        return {name: nodes[name]["value"] for name in self.free}

    def _take(self, terms: SiteTerms, accepted: Tensor) -> None:
        """The z of these terms, in these rows."""
        for name, site in terms.guide.items():
            place = site.value.dim() - site.fn.event_dim + site.dim
            rows = accepted.reshape([-1 if d == place else 1 for d in range(site.value.dim())])
            self.z[name] = torch.where(rows, site.value, self.z[name])
        self.laws.append((terms.observed[self.site], accepted))

    def draw(self) -> Tensor:
        """x ~ p(x | z) at each row's present z; where that has no law, the x that there is."""
        drawn = self.pick(lambda law: law.sample())
        return torch.where(drawn.isfinite(), drawn, self.x)

    def pick(self, of: Callable[[Any], Tensor]) -> Tensor:
        """``of(p(x | z))`` at each row's present z, in x's shape."""
        found = self.x
        for s, rows in self.laws:
            value = s.rows(of(s.fn)).reshape(self.x.shape).to(self.x)
            found = torch.where(rows.reshape(-1, *(1 for _ in self.x.shape[1:])), value, found)
        return found


def _log_joint(terms: SiteTerms) -> Tensor:
    """log p(x, z), ``(K·B,)``, nats."""
    total: Any = sum(site.log_prob for site in (terms.prior | terms.observed).values())
    return total[0].double()


def _accepted(log_new: Tensor, log_old: Tensor) -> Tensor:
    """Metropolis' test; a state without a density, as a guide that fails on a strange x may leave
    one, is left at once.
    """
    log_ratio = torch.where(log_old.isnan(), torch.inf, log_new - log_old)
    return ~log_new.isnan() & (torch.rand_like(log_ratio).log() < log_ratio)


def _is_free(guide: Site, prior: Site | None) -> bool:
    """Whether a latent has any real value, and no two values of it are one (as angles are)."""
    if prior is None or not guide.value.is_floating_point():
        return False
    fns = guide.fn, prior.fn
    return all(is_real(fn) and not is_periodic(fn, guide.value) for fn in fns)


def image_site_of(observed: Mapping[str, Site], x: Tensor) -> str:
    """The observed site whose value is x, whole, and whose pixels are independent given z.

    Raises:
        UserError: there is no such site.
    """
    for name, site in observed.items():
        value = site.value.expand(site.fn.batch_shape + site.fn.event_shape)
        if value.numel() == x.numel() and torch.equal(site.rows(value).reshape(x.shape), x):
            if (law := one_by_one(site.fn)).event_shape:
                raise UserError(
                    f"site {name!r}: the pixels of {type(law).__name__} depend on each other "
                    "given z, but only independent pixels can be drawn one by one: use a "
                    "likelihood that is a product over pixels, .to_event(n)"
                )
            return name
    raise UserError(
        f"none of the observed sites ({', '.join(observed)}) observes x itself, so there are no "
        "pixels of x to draw"
    )
