"""An estimate of log p(x) as a value: two error bars, a bias estimate, diagnostics, and the
protocol behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
from pyro_vae.formatting import figure, protocol_line, quantity, share

EXACT = "exact"
"""The protocol's estimator where no latent is drawn."""


@dataclass(frozen=True, eq=False)
class LogMarginal:
    """An estimate of log p(x) on a set of images, with what is needed to doubt it. All in nats."""

    log_px: Tensor  # (N,) float64, L_K of each image
    se: Tensor  # (N,) Monte Carlo standard error of each (delta method)
    ess: Tensor  # (N,) (Σw)² / Σw²
    khat: Tensor  # (N,) Pareto shape of the weights' tail
    elbo_px: Tensor  # (N,) mean log weight: each image's ELBO
    max_weight_share: Tensor  # (N,) the largest weight over their sum
    debiased_px: (
        Tensor  # (N,) jackknifed L_K: its bias is of second order in 1/K, and it is no bound
    )
    curve: dict[int, float]  # mean L_k of the first k of the same draws
    num_samples: int
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bits_offset: float | None = None

    @property
    def exact(self) -> bool:
        """Whether no latent was drawn: log p(x) itself, without a Monte Carlo error."""
        return self.protocol.get("estimator") == EXACT

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.log_px)

    @property
    def mean(self) -> float:
        """mean L_K: its expectation is at most the set's mean log p(x)."""
        return float(self.log_px.mean())

    @property
    def se_mc(self) -> float:
        """Monte Carlo error of the mean, the set being fixed: √Σ se² / N."""
        return float(self.se.square().sum().sqrt() / self.num_images)

    @property
    def se_total(self) -> float:
        """Standard error of the mean with the set as a sample, Monte Carlo included: sd(L) / √N;
        NaN for one image.
        """
        return (
            float(self.log_px.std() / self.num_images**0.5) if self.num_images > 1 else float("nan")
        )

    @property
    def bias(self) -> float:
        """Estimated bias of the mean, −Σ v / 2N."""
        return float(-self.se.square().mean() / 2)

    @property
    def lower95(self) -> float:
        """mean L_K − log(20)/N: at most the true mean with probability 95%, even for weights of
        infinite variance.
        """
        return self.mean if self.exact else self.mean - log(20) / self.num_images

    @property
    def elbo(self) -> float:
        """The mean log weight of the same draws: the guide's ELBO where the guide is the proposal."""
        return float(self.elbo_px.mean())

    @property
    def debiased(self) -> float:
        """mean of the jackknifed estimates (Nowozin 2018): nearer to log p(x) than the mean, and
        **not** a bound.
        """
        return float(self.debiased_px.mean())

    @property
    def high_khat(self) -> float:
        """The share of images with k̂ > 0.7, of those that have a k̂."""
        known = self.khat[~self.khat.isnan()]
        return float((known > 0.7).double().mean()) if len(known) else float("nan")

    @property
    def bits_per_dim(self) -> float | None:
        """−mean / (D log 2), plus log2 of the levels of dequantized data; None where that is no
        code length.
        """
        dims = self.protocol.get("num_dims")
        if self.bits_offset is None or not dims or self.protocol.get("factors"):
            return None
        return -self.mean / (dims * log(2)) + self.bits_offset

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the number is to be read."""
        found = list(self.notes)
        if self.num_samples == 1 and not self.exact:
            found.append(
                "one draw an image: this is the ELBO, and it has no Monte Carlo error or bias "
                "estimate; use more draws"
            )
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
                f"{bad} images have log weights that are not finite: their log p(x), and the "
                "mean, can't be read"
            )
        dominated = float((self.max_weight_share > 0.5).double().mean())
        if dominated > 0.01 and self.num_samples > 1:
            found.append(
                f"one draw carries over half of the weight in {dominated:.1%} of the images"
            )
        return tuple(found)

    def __str__(self) -> str:
        label = self.protocol.get("estimator", f"IW-{self.num_samples}")
        line = f"{quantity(self.protocol)} {'=' if self.exact else '≥'} {figure(self.mean)} nats ({label}, N = {self.num_images})"
        line += f"  MC ±{self.se_mc:.3f}  test set ±{self.se_total:.2f}"
        if not self.exact:
            line += f"  est. bias {figure(self.bias, 3)}"
            line += f"  k̂ > 0.7: {share(self.high_khat)}  median ESS {float(self.ess.median()):.0f}"
            # another proposal's mean log weight is not the guide's ELBO
            line += (
                f"  ELBO {figure(self.elbo)}"
                if self.protocol.get("proposal", "guide") == "guide"
                else ""
            )
        if self.bits_per_dim is not None:
            line += f"  bits/dim {self.bits_per_dim:.3f}"
        rest = protocol_line(self.protocol, "estimator", "num_samples", "num_images", "num_dims")
        return "\n".join([line, rest, *(f"  warning: {text}" for text in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names, without the per-image tensors: what ``--json``
        prints.
        """
        names = (
            "mean",
            "se_mc",
            "se_total",
            "bias",
            "lower95",
            "elbo",
            "debiased",
            "high_khat",
            "bits_per_dim",
            "num_samples",
            "num_images",
        )
        figures = {name: getattr(self, name) for name in names}
        figures["median_ess"] = float(self.ess.median())
        return {
            **figures,
            "curve": {str(k): v for k, v in self.curve.items()},
            "protocol": self.protocol,
            "warnings": list(self.warnings),
        }

    # ---- for readers and other tools (`pyro_vae.evaluation.arviz_export`,
    # `pyro_vae.evaluation.page`)

    def summary(self) -> str:
        """The headline, and below it what a reader who doubts it asks next: the curve, quantiles,
        the worst images.
        """
        from pyro_vae.evaluation import arviz_export

        return arviz_export.summary(self)

    def per_image(self) -> pandas.DataFrame:
        """One row an image: log_px, se, bias, ess, khat, max_weight_share, lower, upper, flag."""
        from pyro_vae.evaluation import arviz_export

        return arviz_export.per_image_table(self)

    def to_csv(self, path: str | Path) -> Path:
        """Write `per_image` as CSV, all digits."""
        from pyro_vae.evaluation import arviz_export

        return arviz_export.write_per_image_csv(self, path)

    def to_elpd(self) -> Any:
        """ArviZ's ELPD data: ``az.compare``, ``az.plot_compare`` and ``az.plot_khat`` take it."""
        from pyro_vae.evaluation import arviz_export

        return arviz_export.to_elpd(self)

    def to_inference_data(
        self, model: Callable[..., Any], guide: Callable[..., Any], x: Any, **options: Any
    ) -> Any:
        """The first images' posteriors for ArviZ; ``options`` are those of
        `pyro_vae.evaluation.arviz_export.to_inference_data`.
        """
        from pyro_vae.evaluation import arviz_export

        return arviz_export.to_inference_data(self, model, guide, x, **options)

    def plot(
        self, path: str | Path, x: Tensor | None = None, reconstructions: Tensor | None = None
    ) -> Path:
        """Write the page of plots as a PNG: K-curve, k̂, ESS, and the worst of the images ``x``
        above their reconstructions.
        """
        from pyro_vae.evaluation import page

        return page.write_evaluation_page(path, self, x, reconstructions)
