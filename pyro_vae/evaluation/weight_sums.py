"""Streaming sums of importance weights, in memory that does not grow with K; k̂ and jackknife."""

from __future__ import annotations

from itertools import chain
from math import ceil, log, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_vae.distributed import Group
from pyro_vae.errors import UserError
from pyro_vae.evaluation.tiling import stops


def tail_length(num_samples: int) -> int:
    """M = ⌈min(K/5, 3√K)⌉, the number of largest weights that k̂ is fitted to (Vehtari et al.
    2024).
    """
    return ceil(min(num_samples / 5, 3 * sqrt(num_samples)))


CONSTANT = 1e-10
"""A relative variance of the mean weight below which all weights are one number, up to float32's
rounding.
"""

SHORTEST_TAIL = 5
"""Fewer weights than these have no k̂ (Vehtari et al. 2024)."""

FITTED = 2**22
"""Numbers, observations times nodes times images, of the fits that are made at once: 32 MB."""


def pareto_khat(top: Tensor, variance: Tensor) -> Tensor:
    """k̂ of the importance weights from their M + 1 largest alone (Vehtari et al. 2024).

    The tail is the weights above the (M + 1)-th largest; k̂ is the shape of the generalised Pareto
    distribution of their excesses.

    Args:
        top: the largest log weights ``(M + 1, B)``, descending.
        variance: relative variance of the mean weight, ``(B,)``.

    Returns:
        ``(B,)``: −inf where the weights are constant, NaN where fewer than five are in the tail.
    """
    if len(top) <= SHORTEST_TAIL:
        return torch.full_like(variance, torch.nan)
    relative = top - top[0]
    # a weight below the smallest normal float64 counts as zero
    cutoff = relative[-1].clamp(min=log(torch.finfo(torch.float64).tiny))
    inside = relative[:-1] > cutoff
    excess = torch.where(inside, relative[:-1].exp() - cutoff.exp(), 0.0)
    images = max(1, FITTED // (len(excess) * _most_nodes(len(excess))))
    parts = zip(excess.split(images, 1), inside.sum(0).split(images), strict=True)
    khat = torch.cat([generalized_pareto_shape(*part) for part in parts])
    khat = khat.where(inside.sum(0) >= SHORTEST_TAIL, torch.nan)
    return torch.where(variance < CONSTANT, -torch.inf, khat)


def generalized_pareto_shape(excess: Tensor, lengths: Tensor) -> Tensor:
    """The shapes k of B generalised Pareto distributions, fitted all at once (Zhang & Stephens
    2009).

    θ = −k/σ has a weakly informative prior; its posterior mean, on a grid, is put into the
    likelihood equation of k, which is then drawn towards ½ with the weight of ten observations
    (Vehtari et al. 2024). Nothing is read on the host.

    Args:
        excess: what the observations exceed their threshold by, ``(n, B)``, descending; 0 beyond
            the ``lengths`` ``(B,)``.

    Returns:
        ``(B,)``; without meaning where there are fewer than five observations.

    Reference:
        Zhang and Stephens 2009, Technometrics 51(3), section 3; ArviZ's ``psislw`` is the same.
    """
    n = lengths.to(excess)
    size = 30 + n.sqrt().floor()  # nodes of each fit
    nodes = torch.arange(1, _most_nodes(len(excess)) + 1).to(excess).unsqueeze(1) - 0.5
    at_quartile = (lengths - (n / 4 + 0.5).long()).clamp(min=0)
    quartile = excess.gather(0, at_quartile.unsqueeze(0))
    theta = 1 / excess[0] + (1 - (size / nodes).sqrt()) / (3 * quartile)
    shape = torch.log1p(-theta.unsqueeze(1) * excess).sum(1) / n
    likelihood = n * ((-theta / shape).log() - shape - 1)
    # a tail of equal weights puts a node on θ = 0, where −θ/k is 0/0
    posterior = likelihood.where((nodes < size) & (theta != 0), -torch.inf).softmax(0)
    mean = (theta * posterior).sum(0)
    return (torch.log1p(-mean * excess).sum(0) + 5) / (n + 10)


def _most_nodes(num_observations: int) -> int:
    return 30 + int(num_observations**0.5)


def jackknife_length(num_samples: int) -> int:
    """How many of the largest weights the jackknife takes one by one; the rest enter by four terms
    of a series.
    """
    return min(num_samples, max(64, tail_length(num_samples) + 1))


class WeightSums:
    """What K draws leave behind, per image: sums of powers of the weights relative to the largest,
    and the largest ones.

    ``strata`` are the shares of the draws that come from each part of a stratified proposal, the
    first rows of every chunk from the first part (one part: plain sampling). All sums are float64.
    """

    def __init__(
        self,
        num_images: int,
        num_samples: int,
        device: torch.device,
        strata: tuple[float, ...] = (1.0,),
    ) -> None:
        self.num_samples, self.seen, self.strata = num_samples, 0, strata
        zeros = torch.zeros(num_images, dtype=torch.float64, device=device)
        self.largest = torch.full_like(zeros, -torch.inf)
        self.powers = zeros.expand(4, -1).clone()  # Σw, Σw², Σw³, Σw⁴
        self.parts = zeros.expand(2, len(strata), -1).clone()  # Σw and Σw² by stratum
        self.counts = [0] * len(strata)
        self.total = zeros.clone()
        self.top = torch.empty(0, num_images, dtype=torch.float64, device=device)

    def add(self, *chunks: Tensor) -> None:
        """Take in chunks of log weights, each ``(k, B)``: several at once are quicker than one by
        one.
        """
        chunk = torch.cat(chunks).double()
        largest = torch.maximum(self.largest, chunk.amax(0))
        # an image whose weights so far are all zero has −inf for its largest: its sums stay zero
        anchor = torch.where(largest.isfinite(), largest, torch.zeros_like(largest))
        shrink = (self.largest - anchor).exp()
        weights = (chunk - anchor).exp()
        squares = weights.square()
        sums = (weights.sum(0), squares.sum(0), (squares * weights).sum(0), squares.square().sum(0))
        self.powers = self.powers * torch.stack([shrink**n for n in (1, 2, 3, 4)]) + torch.stack(
            sums
        )
        self.parts = self.parts * torch.stack((shrink, shrink.square())).unsqueeze(1)
        sizes = [size for each in chunks for size in split_draws(len(each), self.strata)]
        for row, values in enumerate((weights, squares)):
            by_part = values.split(sizes)
            for part in range(len(self.strata)):
                self.parts[row, part] += sum(
                    each.sum(0) for each in by_part[part :: len(self.strata)]
                )
        self.counts = [
            n + sum(sizes[part :: len(self.strata)]) for part, n in enumerate(self.counts)
        ]
        self.total = self.total + chunk.sum(0)
        self.largest = largest
        kept = torch.cat((self.top, chunk))
        self.top = kept.topk(min(jackknife_length(self.num_samples), len(kept)), dim=0).values
        self.seen += len(chunk)

    def log_mean(self, *chunks: Tensor) -> Tensor:
        """L_k = log (Σw / k) of the k draws seen so far and those of ``chunks``, ``(B,)``."""
        log_sum = self.largest + self.powers[0].log()
        if chunks:
            log_sum = torch.logaddexp(log_sum, torch.cat(chunks).double().logsumexp(0))
        return log_sum - log(self.seen + sum(map(len, chunks)))

    def finish(self) -> Figures:
        """The per-image figures of all K draws."""
        k, first, variance = self.seen, self.powers[0], self._variance()
        ess = first.square() / self.powers[1]
        # the largest weight is 1 relative to itself
        share = torch.where(first > 0, 1.0 / first, torch.nan)
        return {
            "log_px": self.log_mean(),
            "elbo_px": self.total / k,
            "se": variance.sqrt(),
            "ess": ess,
            "max_weight_share": share,
            "debiased_px": self._jackknife(),
            "khat": pareto_khat(self.top[: tail_length(k) + 1], variance),
        }

    def _variance(self) -> Tensor:
        """v = Σ_j n_j s_j² / (Σw)²: the relative variance of the mean weight, by stratum."""
        if min(self.counts) < 2:
            return torch.full_like(self.largest, torch.nan)
        variance = torch.zeros_like(self.largest)
        for part, count in enumerate(self.counts):
            first, second = self.parts[0, part], self.parts[1, part]
            variance = variance + count / (count - 1) * (second - first.square() / count)
        return (variance / self.powers[0].square()).clamp(min=0.0)

    def _jackknife(self) -> Tensor:
        """K·L_K − (K−1)·mean_j L_{K−1, without j} (Nowozin 2018), the largest weights one by one,
        the rest by a series.
        """
        k = self.seen
        if k < 2:
            return torch.full_like(self.largest, torch.nan)
        log_sum = self.largest + self.powers[0].log()
        shares = (self.top - log_sum).exp()
        left_out = torch.log1p(-shares).sum(0)
        for n in (1, 2, 3, 4):  # log(1 − s) = −s − s²/2 − …, of the weights below the largest ones
            rest = self.powers[n - 1] / self.powers[0] ** n - (shares**n).sum(0)
            left_out = left_out - rest.clamp(min=0.0) / n
        return k * (log_sum - log(k)) - (k - 1) * (log_sum + left_out / k - log(k - 1))


def split_draws(num_draws: int, strata: tuple[float, ...]) -> list[int]:
    """How many of ``num_draws`` come from each stratum: its share, rounded, at least one while
    there are enough.
    """
    counts = [max(1, round(share * num_draws)) for share in strata[1:]]
    first = num_draws - sum(counts)
    return [first, *counts] if first >= 1 else [num_draws, *(0 for _ in counts)]


Figures = dict[str, Tensor]
"""Of each image, ``(B,)`` float64, by the names that `LogMarginal` has."""

Curve = dict[int, Tensor]  # k -> Σ over images of log of the mean of the first k weights


class Gathered:
    """The figures of each tile of images, put together as those of the set."""

    def __init__(self, num_samples: int) -> None:
        self.stops = stops(num_samples)
        self._tiles: list[tuple[int, list[str], Tensor, list[float]]] = []

    def add(self, start: int, figures: Figures, curve: Curve) -> None:
        """A tile, in one part or more, whose first image is the set's number ``start``."""
        stacked = torch.stack([each.double() for each in figures.values()]).cpu()
        sums_of_curve = torch.stack([curve[stop] for stop in self.stops]).tolist()
        self._tiles.append((start, list(figures), stacked, sums_of_curve))

    def gather(self, group: Group) -> None:
        """The tiles of all processes, in the images' order: sums then have the bits that one
        process gives them.
        """
        tiles = chain.from_iterable(group.gather(self._tiles))
        self._tiles = sorted(tiles, key=lambda tile: tile[0])

    def figures(self) -> dict[str, Any]:
        """Those of all images, ``(N,)`` by name, and the curve, means over the images.

        Raises:
            UserError: an image whose estimate is NaN.
        """
        _, names, columns, curves = zip(*self._tiles, strict=True)
        found = dict(zip(names[0], torch.cat(columns, dim=1), strict=True))
        log_px = found["log_px"]
        if bool((wrong := log_px.isnan()).any()):
            raise UserError(
                f"image {int(wrong.nonzero()[0])}: its log weights are NaN: look for NaN in the "
                "model's parameters, or for a refined guide that was given other images"
            )
        totals = [sum(values) for values in zip(*curves, strict=True)]
        return {
            **found,
            "curve": {k: total / len(log_px) for k, total in zip(self.stops, totals, strict=True)},
        }
