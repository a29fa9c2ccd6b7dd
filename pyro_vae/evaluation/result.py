"""The result of an estimator of log p(x): `LogMarginal`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae.formatting import (
    figure,
    quantity,
    share,
    standard_error,
)

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

from pyro_vae.evaluation.estimate import Estimate, over_images

EXACT = "exact"
"""The protocol's estimator where no latent is drawn."""

SOUND_KHAT, SOUND_ESS = 0.5, 300.0
"""Where an image's nominal 95% interval covers: k̂ below, and the weights' ESS at least
(evaluation.md, measured).
"""

UNSOUND = "interval unsound"


@dataclass(frozen=True, eq=False, kw_only=True)
class LogMarginal(Estimate):
    """An estimate of log p(x) on N images, by `log_marginal`. All figures are in nats.

    ``print(ll)`` shows the headline, the protocol and the warnings. Figures named ``…_px`` and the
    tensors below have one entry for each image; the properties are figures of the whole set.

    Attributes:
        log_px: L_K of each image, ``(N,)``, float64.
        se: Monte Carlo standard error of each L_K, ``(N,)``, by the delta method.
        ess: effective sample size of each image's weights, (Σw)² / Σw², ``(N,)``.
        khat: Pareto shape k̂ of the tail of each image's weights, ``(N,)``. Above 0.7 the error bar
            of that image can't be trusted.
        elbo_px: mean log weight of each image, ``(N,)``: its ELBO where the guide is the proposal.
        max_weight_share: the largest weight as a share of their sum, ``(N,)``.
        debiased_px: jackknifed L_K, ``(N,)``. Its bias is of second order in 1/K, and it is no
            bound.
        curve: k -> mean L_k of the first k of the same draws, for some k up to K.
        num_samples: K, the number of draws for each image.
        bits_offset: as given to `log_marginal`.
        protocol: what was scored and how: data, digests, estimator, seed, versions.
        notes: remarks of the estimator, which `warnings` shows first.

    Reference:
        Burda et al. 2016, equation 8 (L_K); Nowozin 2018, "Debiasing Evidence Approximations"
        (jackknife); Vehtari et al. 2024, "Pareto Smoothed Importance Sampling" (k̂).
    """

    columns: ClassVar[tuple[str, ...]] = ("log_px", "se", "ess", "khat", "max_weight_share")
    figures: ClassVar[tuple[str, ...]] = (
        *("mean", "se_mc", "se_total", "bias", "lower95", "elbo", "debiased", "high_khat"),
        *("bits_per_dim", "num_samples", "num_images", "median_ess", "curve"),
        *("protocol", "warnings"),
    )

    log_px: Tensor  # (N,) float64, L_K of each image
    se: Tensor  # (N,) Monte Carlo standard error of each (delta method)
    ess: Tensor  # (N,) (Σw)² / Σw²
    khat: Tensor  # (N,) Pareto shape of the weights' tail
    elbo_px: Tensor  # (N,) mean log weight: each image's ELBO
    max_weight_share: Tensor  # (N,) the largest weight over their sum
    # (N,) jackknifed L_K: its bias is of second order in 1/K, and it is no bound
    debiased_px: Tensor
    curve: dict[int, float]  # mean L_k of the first k of the same draws
    num_samples: int
    bits_offset: float | None = None

    mean = over_images("log_px", "Mean L_K, whose expectation is at most the set's mean log p(x).")
    se_total = over_images(
        "log_px",
        "Standard error of the mean over images, Monte Carlo error included.",
        standard_error,
    )
    elbo = over_images(
        "elbo_px", "The mean log weight, which is the ELBO if the guide is the proposal."
    )
    debiased = over_images(
        "debiased_px", "Jackknifed mean (Nowozin 2018), with less bias, and no bound."
    )
    median_ess = over_images("ess", "Median of the effective sample sizes.", torch.median)

    @property
    def exact(self) -> bool:
        """Whether no latent was drawn, so that the number has no Monte Carlo error."""
        return self.protocol.get("estimator") == EXACT

    @property
    def se_mc(self) -> float:
        """Monte Carlo standard error of the mean over these N images, √(Σ se²) / N."""
        return float(self.se.square().sum().sqrt() / self.num_images)

    @property
    def bias(self) -> float:
        """Estimated bias of the mean, −Σ se² / 2N, in nats, by which the number is too low."""
        return float(-self.se.square().mean() / 2)

    @property
    def lower95(self) -> float:
        """A 95% lower bound of the set's mean log p(x), computed as mean L_K − log(20)/N.

        It follows from Markov's inequality, and so needs no finite variance of the weights.
        """
        return self.mean if self.exact else self.mean - log(20) / self.num_images

    @property
    def high_khat(self) -> float:
        """The share of images with k̂ > 0.7, among those that have a k̂."""
        known = self.khat[~self.khat.isnan()]
        return float((known > 0.7).double().mean()) if len(known) else float("nan")

    @property
    def bits_per_dim(self) -> float | None:
        """Bits per dimension, −mean / (D log 2) + ``bits_offset``; None without ``bits_offset``."""
        dims = self.protocol.get("num_dims")
        if self.bits_offset is None or not dims or self.protocol.get("factors"):
            return None
        return -self.mean / (dims * log(2)) + self.bits_offset

    @property
    def sound(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each image's interval can be trusted, ``(N,)`` bool (k̂ < 0.5 and ESS ≥ 300, or
        exact).
        """
        return (((self.khat < SOUND_KHAT) & (self.ess >= SOUND_ESS)) | self.exact).cpu().numpy()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the number is to be read, a sentence each."""
        found = list(self.notes)
        if self.num_samples == 1 and not self.exact:
            found.append(self._of_one_draw())
        if abs(self.bias) > 0.05:
            found.append(
                f"estimated bias {self.bias:+.2f} nats: use more draws, or a guide nearer to the "
                "posterior"
            )
        half = self.curve.get(self.num_samples // 2)
        if half is not None and self.num_samples > 1 and self.mean - half > 0.05:
            found.append(
                f"the estimate still rises: {self.mean - half:+.2f} nats from K = "
                f"{self.num_samples // 2} to {self.num_samples}"
            )
        if bad := int((~self.log_px.isfinite()).sum()):
            found.append(
                f"{bad} images have log weights that are not finite: don't use their log p(x), "
                "nor the mean"
            )
        dominated = float((self.max_weight_share > 0.5).double().mean())
        if dominated > 0.01 and self.num_samples > 1:
            found.append(
                f"one draw has more than half of the weight in {dominated:.1%} of the images"
            )
        return tuple(found)

    def _of_one_draw(self) -> str:
        return (
            "one draw for each image: this is the ELBO, without a Monte Carlo error and a bias "
            "estimate. Use more draws"
        )

    def headline(self) -> list[str]:
        """The printed line: log p(x), two standard errors, estimated bias, k̂, ESS and ELBO."""
        line = self.number(self.label)
        if not self.exact:
            line += f"  est. bias {figure(self.bias, 3)}"
            line += f"  k̂ > 0.7: {share(self.high_khat)}  median ESS {self.median_ess:.0f}"
            # another proposal's mean log weight is not the guide's ELBO
            if self.protocol.get("proposal", "guide") == "guide":
                line += f"  ELBO {figure(self.elbo)}"
        return [line + self._bits()]

    @property
    def label(self) -> str:
        """How it was estimated."""
        return str(self.protocol.get("estimator", f"IW-{self.num_samples}"))

    def number(self, label: str) -> str:
        """log p(x) with its two errors."""
        sign = "=" if self.exact else "≥"
        line = f"{quantity(self.protocol)} {sign} {figure(self.mean)} nats "
        line += f"({label}, N = {self.num_images})"
        return line + f"  MC ±{self.se_mc:.3f}  test set ±{self.se_total:.2f}"

    def _bits(self) -> str:
        return "" if self.bits_per_dim is None else f"  bits/dim {self.bits_per_dim:.3f}"

    def summary(self) -> str:
        """The printed lines, then the K-curve, quantiles of the figures, and the images that fit
        worst.
        """
        curve = "  ".join(f"{figure(value)} (K = {k})" for k, value in sorted(self.curve.items()))
        order = torch.argsort(self.log_px)[: min(5, self.num_images)].tolist()
        worst = ", ".join(f"{i}: {figure(float(self.log_px[i]))}" for i in order)
        lines = [
            str(self),
            f"  95% lower bound on the mean, whatever the weights: {figure(self.lower95)}",
            f"  first k of the same draws: {curve}; ELBO {figure(self.elbo)}",
            f"  jackknifed, which is no bound: {figure(self.debiased)}",
            self._by_image("ESS", "ess", 0),
            self._by_image("k̂", "khat", 2),
            self._by_image("largest weight's share", "max_weight_share", 3),
            f"  sound per-image intervals (k̂ < {SOUND_KHAT:g} and ESS ≥ {SOUND_ESS:.0f}): "
            f"{int(self.sound.sum())} of {self.num_images}",
            f"  lowest {quantity(self.protocol)}, by image: {worst}",
        ]
        return "\n".join(lines)

    def per_image(self) -> pandas.DataFrame:
        """A table with one row for each image, in nats.

        Returns:
            A DataFrame with the columns log_px, se, bias, ess, khat, max_weight_share, lower, upper
            and flag. ``bias`` is −se²/2; ``lower`` and ``upper`` are log_px − bias ± 1.96 se;
            ``flag`` is ``interval unsound`` unless k̂ < 0.5 and ESS ≥ 300.
        """
        table = super().per_image()
        table.insert(3, "bias", -(table["se"] ** 2) / 2)
        centre, half = table["log_px"] - table["bias"], 1.96 * table["se"]
        flag = ["" if sound else UNSOUND for sound in self.sound]
        return table.assign(lower=centre - half, upper=centre + half, flag=flag)

    # ---- for other tools (`pyro_vae.evaluation.arviz_export`, `pyro_vae.evaluation.page`)

    def to_elpd(self) -> Any:
        """The estimate as ArviZ's ELPD data, for ``az.compare``, ``az.plot_compare`` and
        ``az.plot_khat``.
        """
        from pyro_vae.evaluation.arviz_compat import elpd_data

        log_px, khat = (each.double().cpu().numpy() for each in (self.log_px, self.khat))
        return elpd_data(log_px, khat, self.num_samples)

    def to_inference_data(
        self, model: Callable[..., Any], guide: Callable[..., Any], x: Any, **options: Any
    ) -> Any:
        """Weighted posterior draws of the first images, as ArviZ's InferenceData.

        Args:
            model, guide: the pair that was scored.
            x: the images that were scored, ``(N, *event_shape)``.
            **options: those of `pyro_vae.evaluation.arviz_export.to_inference_data`.

        Returns:
            InferenceData; in ArviZ 1.x a DataTree.
        """
        from pyro_vae.evaluation import arviz_export

        return arviz_export.to_inference_data(self, model, guide, x, **options)

    def plot(
        self, path: str | Path, x: Tensor | None = None, reconstructions: Tensor | None = None
    ) -> Path:
        """Write a page of plots as a PNG: the K-curve, k̂, ESS, and the images that fit worst.

        Args:
            path: the file.
            x: the images ``(N, *event_shape)``, which lets the page show the worst of them.
            reconstructions: of the same shape, shown below them.

        Returns:
            The file's path.
        """
        from pyro_vae.evaluation import page

        return page.write_evaluation_page(path, self, x, reconstructions)
