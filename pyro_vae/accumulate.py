"""Streaming sums of importance weights: what K draws leave behind, in memory that does not grow with K."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, sqrt

import torch
from torch import Tensor


def tail_length(num_samples: int) -> int:
    """M = ⌈min(K/5, 3√K)⌉, the number of largest weights that k̂ is fitted to (Vehtari et al. 2024)."""
    return ceil(min(num_samples / 5, 3 * sqrt(num_samples)))


class WeightSums:
    """Per image: the largest log weight, Σw and Σw² relative to it, Σ log w, and the M + 1 largest log weights; float64."""

    def __init__(self, num_images: int, num_samples: int, device: torch.device) -> None:
        self.num_samples, self.seen = num_samples, 0
        zeros = torch.zeros(num_images, dtype=torch.float64, device=device)
        self.largest = torch.full_like(zeros, -torch.inf)
        self.first, self.second, self.total = zeros, zeros.clone(), zeros.clone()
        self.top = torch.empty(0, num_images, dtype=torch.float64, device=device)
        self._num_top = min(tail_length(num_samples) + 1, num_samples)

    def add(self, log_weights: Tensor) -> None:
        """Take in a chunk of log weights, ``(k, B)``."""
        chunk = log_weights.double()
        largest = torch.maximum(self.largest, chunk.amax(0))
        # an image whose weights so far are all zero has −inf for its largest: its sums stay zero
        anchor = torch.where(largest.isfinite(), largest, torch.zeros_like(largest))
        shrink = (self.largest - anchor).exp()
        weights = (chunk - anchor).exp()
        self.first = self.first * shrink + weights.sum(0)
        self.second = self.second * shrink.square() + weights.square().sum(0)
        self.total = self.total + chunk.sum(0)
        self.largest = largest
        kept = torch.cat((self.top, chunk))
        self.top = kept.topk(min(self._num_top, len(kept)), dim=0).values
        self.seen += len(chunk)

    def log_mean(self) -> Tensor:
        """L_k = log (Σw / k) of the k draws seen so far, ``(B,)``."""
        return self.largest + self.first.log() - log(self.seen)

    def finish(self) -> ImageSums:
        """The per-image figures of all K draws."""
        k = self.seen
        ess = self.first.square() / self.second
        variance = (1.0 / ess - 1.0 / k) * k / (k - 1) if k > 1 else torch.full_like(ess, torch.nan)
        share = torch.where(self.first > 0, 1.0 / self.first, torch.nan)  # the largest weight is 1 relative to itself
        return ImageSums(self.log_mean(), self.total / k, variance.clamp(min=0.0), ess, share, self.top)


@dataclass(frozen=True)
class ImageSums:
    """Per image, ``(B,)`` float64: L_K, the ELBO, the mean weight's relative variance v, ESS, the largest weight's share."""

    log_px: Tensor
    elbo: Tensor
    variance: Tensor
    ess: Tensor
    max_share: Tensor
    top: Tensor  # (M + 1, B), descending
