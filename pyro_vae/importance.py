"""log p(x) by importance sampling: IW-K with its protocol, two error bars, a bias estimate and diagnostics."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import explain, registry
from pyro_vae.accumulate import ImageSums, WeightSums
from pyro_vae.arviz_adapter import pareto_khat
from pyro_vae.batches import Resident, Source, check_seed, make_source
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.kind import NARROW_IMAGES, kind_of, narrow_notes
from pyro_vae.pair import Pair
from pyro_vae.proposals import Proposal
from pyro_vae.staged_weights import Draw, make_weights
from pyro_vae.weights import check_count

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

ROWS = {"cpu": 2000, "cuda": 200_000}
"""Rows (draws times images) of one run of the model: enough to fill the machine, small enough for its cache."""

_MODE_DEPENDENT = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True, eq=False)
class LogMarginal:
    """An estimate of log p(x) on a set of images, with what is needed to doubt it. All in nats."""

    log_px: Tensor  # (N,) float64, L_K of each image
    se: Tensor  # (N,) Monte Carlo standard error of each (delta method)
    ess: Tensor  # (N,) (Σw)² / Σw²
    khat: Tensor  # (N,) Pareto shape of the weights' tail
    elbo_px: Tensor  # (N,) mean log weight: each image's ELBO
    max_weight_share: Tensor  # (N,) the largest weight over their sum
    debiased_px: Tensor  # (N,) jackknifed L_K: its bias is of second order in 1/K, and it is no bound
    curve: dict[int, float]  # mean L_k of the first k of the same draws
    num_samples: int
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bits_offset: float | None = None

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
        """Standard error of the mean with the set as a sample, Monte Carlo included: sd(L) / √N; NaN for one image."""
        return float(self.log_px.std() / self.num_images**0.5) if self.num_images > 1 else float("nan")

    @property
    def bias(self) -> float:
        """Estimated bias of the mean, −Σ v / 2N."""
        return float(-self.se.square().mean() / 2)

    @property
    def lower95(self) -> float:
        """mean L_K − log(20)/N: at most the true mean with probability 95%, even for weights of infinite variance."""
        return self.mean - log(20) / self.num_images

    @property
    def elbo(self) -> float:
        """The mean log weight of the same draws: the guide's ELBO where the guide is the proposal."""
        return float(self.elbo_px.mean())

    @property
    def debiased(self) -> float:
        """mean of the jackknifed estimates (Nowozin 2018): nearer to log p(x) than the mean, and **not** a bound."""
        return float(self.debiased_px.mean())

    @property
    def high_khat(self) -> float:
        """The share of images with k̂ > 0.7, of those that have a k̂."""
        known = self.khat[~self.khat.isnan()]
        return float((known > 0.7).double().mean()) if len(known) else float("nan")

    @property
    def bits_per_dim(self) -> float | None:
        """−mean / (D log 2), plus log2 of the levels of dequantized data; None where that is no code length."""
        if self.bits_offset is None:
            return None
        return -self.mean / (self.protocol["num_dims"] * log(2)) + self.bits_offset

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the number is to be read."""
        found = list(self.notes)
        if self.num_samples == 1:
            found.append(
                "one draw an image: this is the ELBO, and it has no Monte Carlo error or bias estimate; use more draws"
            )
        if abs(self.bias) > 0.05:
            found.append(f"estimated bias {self.bias:+.2f} nats: use more draws, or a guide nearer to the posterior")
        half = self.curve.get(self.num_samples // 2)
        if half is not None and self.num_samples > 1 and self.mean - half > 0.05:
            found.append(
                f"the estimate still rises: {self.mean - half:+.2f} nats from K = {self.num_samples // 2} to {self.num_samples}"
            )
        if bad := int((~self.log_px.isfinite()).sum()):
            found.append(
                f"{bad} images have log weights that are not finite: their log p(x), and the mean, can't be read"
            )
        dominated = float((self.max_weight_share > 0.5).double().mean())
        if dominated > 0.01 and self.num_samples > 1:
            found.append(f"one draw carries over half of the weight in {dominated:.1%} of the images")
        return tuple(found)

    def __str__(self) -> str:
        label = self.protocol.get("estimator", f"IW-{self.num_samples}")
        line = f"log p(x) ≥ {_figure(self.mean)} nats ({label}, N = {self.num_images})"
        line += f"  MC ±{self.se_mc:.3f}  test set ±{self.se_total:.2f}  est. bias {_figure(self.bias, 3)}"
        line += f"  k̂ > 0.7: {_share(self.high_khat)}  median ESS {float(self.ess.median()):.0f}"
        if (
            self.protocol.get("proposal", "guide") == "guide"
        ):  # another proposal's mean log weight is not the guide's ELBO
            line += f"  ELBO {_figure(self.elbo)}"
        if self.bits_per_dim is not None:
            line += f"  bits/dim {self.bits_per_dim:.3f}"
        shown = {
            k: v for k, v in self.protocol.items() if k not in ("estimator", "num_samples", "num_images", "num_dims")
        }
        lines = [line, "  protocol: " + "; ".join(f"{k} {_shorten(v)}" for k, v in shown.items())]
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names, without the per-image tensors: what ``--json`` prints."""
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

    # ---- for readers and other tools (`pyro_vae.export`, `pyro_vae.evaluation_page`)

    def summary(self) -> str:
        """The headline, and below it what a reader who doubts it asks next: the curve, quantiles, the worst images."""
        from pyro_vae import export

        return export.summary(self)

    def per_image(self) -> pandas.DataFrame:
        """One row an image: log_px, se, bias, ess, khat, max_weight_share, lower, upper, flag."""
        from pyro_vae import export

        return export.per_image_table(self)

    def to_csv(self, path: str | Path) -> Path:
        """Write `per_image` as CSV, all digits."""
        from pyro_vae import export

        return export.write_per_image_csv(self, path)

    def to_elpd(self) -> Any:
        """ArviZ's ELPD data: ``az.compare``, ``az.plot_compare`` and ``az.plot_khat`` take it."""
        from pyro_vae import export

        return export.to_elpd(self)

    def to_inference_data(self, model: Callable[..., Any], guide: Callable[..., Any], x: Any, **options: Any) -> Any:
        """The first images' posteriors for ArviZ; ``options`` are those of `pyro_vae.export.to_inference_data`."""
        from pyro_vae import export

        return export.to_inference_data(self, model, guide, x, **options)

    def plot(self, path: str | Path, x: Tensor | None = None, reconstructions: Tensor | None = None) -> Path:
        """Write the page of plots as a PNG: K-curve, k̂, ESS, and the worst of the images ``x`` above their reconstructions."""
        from pyro_vae import evaluation_page

        return evaluation_page.write_evaluation_page(path, self, x, reconstructions)


def log_marginal(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_samples: int = 5000,
    proposal: str | Proposal = "guide",
    precision: str = "float32",
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = False,
    bits_offset: float | None = None,
    **fields: Any,
) -> LogMarginal:
    """Estimate log p(x) of each image by K = ``num_samples`` importance samples (IWAE, equation 8), streaming.

    Modules run in eval mode, without gradients, and are restored; sums are float64; memory does not grow with K.

    Args:
        x: images ``(N, *event_shape)`` exactly as they are to be scored: binarized or dequantized already.
        protocol: what the caller knows of the data (data set, binarization); it is printed with the number.
        bits_offset: log2 of the number of levels, for dequantized data: bits per dimension are then reported too.

    Raises:
        UserError: where the number would not be log p(x) of each image, in one sentence.
    """
    _check(num_samples, seed, precision)
    source_of_draws: Proposal = registry.build("proposal", proposal)
    place = find_device(device)
    pair = Pair.of(model, guide).to(place)
    chunk, tile = _tiles(num_samples, ROWS.get(place.type, ROWS["cpu"]))
    source = make_source(x, fields, tile, place)
    tile = min(tile, source.num_images)
    found, digest = _Gathered(num_samples), hashlib.sha256()
    notes = _mode_notes(pair) + ((source_of_draws.warning,) if source_of_draws.warning else ())
    with running(pair, place):
        _refuse(pair, source, source_of_draws)
        known, narrow = observed_words(pair, source, bits_offset)
        images, named = _padded(*next(source.in_order()), tile, pair)
        weights, how = make_weights(
            pair, source_of_draws.kernel(pair), compile, source.num_images, num_samples, chunk, images, named
        )
        if progress:
            tqdm.write(f"log weights: {how}", file=sys.stderr)
        torch.manual_seed(seed)
        for images, named in _tiled(source, tile, progress):
            if not isinstance(source, Resident):
                explain.check_all_support(pair, pair.cast(images), named)
            digest.update(images.cpu().contiguous().numpy().tobytes())
            draw = weights.tile(*_padded(images, named, tile, pair))
            sums = WeightSums(len(images), num_samples, place, source_of_draws.strata)
            found.add(_score(draw, sums, chunk, found.curve))
    said = {
        "estimator": f"IW-{num_samples}",
        "num_samples": num_samples,
        "num_images": source.num_images,
        "num_dims": int(images[0].numel()),
        "proposal": _words(source_of_draws),
        "precision": str(pair.cast(images).dtype).removeprefix("torch."),
        "seed": seed,
        "sha256": digest.hexdigest(),
        **known,
        **(dict(protocol) if protocol else {"data": "as given"}),
    }
    return LogMarginal(
        **found.figures(), num_samples=num_samples, protocol=said, notes=notes + narrow, bits_offset=bits_offset
    )


def _check(num_samples: Any, seed: Any, precision: Any) -> None:
    check_count("num_samples", num_samples)
    check_seed(seed)
    if precision != "float32":
        raise UserError(did_you_mean("precision", str(precision), ["float32"]))


@contextmanager
def running(pair: Pair, place: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, the caller's random state kept; a program's own mistake stays one sentence."""
    with (
        explain.one_sentence(),
        torch.random.fork_rng([place] if place.type == "cuda" else []),
        torch.no_grad(),
        pair.active(training=False, may_create=False),
    ):
        yield


def observed_words(pair: Pair, source: Source, bits_offset: float | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """The kind of log p(x) for the protocol, by the model's observed sites, and what is to be said of their σ."""
    images, named = next(source.in_order())
    few = pair.cast(images[:NARROW_IMAGES]), {name: value[:NARROW_IMAGES] for name, value in named.items()}
    return {"kind": kind_of(pair, *few)}, narrow_notes(pair, *few, bits_offset)


class _Gathered:
    """The figures of each tile of images."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.curve: dict[int, Any] = dict.fromkeys(_stops(num_samples), 0.0)
        self._columns: list[Tensor] = []
        self._tails: list[Any] = []

    def add(self, scored: ImageSums) -> None:
        """A tile."""
        self._columns.append(scored.columns())
        self._tails.append(pareto_khat(scored.top.cpu().numpy(), self.num_samples, self._columns[-1][2].numpy()))

    def figures(self) -> dict[str, Any]:
        """Those of all images, under the names of `LogMarginal`."""
        log_px, elbo_px, variance, ess, max_share, debiased = torch.cat(self._columns, dim=1)
        refuse_nan(log_px)
        return {
            "log_px": log_px,
            "se": variance.sqrt(),
            "ess": ess,
            "khat": torch.from_numpy(np.concatenate(self._tails)),
            "elbo_px": elbo_px,
            "max_weight_share": max_share,
            "debiased_px": debiased,
            "curve": {k: float(v) / len(log_px) for k, v in self.curve.items()},
        }


def refuse_nan(log_px: Tensor) -> None:
    """A ``UserError`` for the first image whose estimate is NaN."""
    if bool(log_px.isnan().any()):
        raise UserError(
            f"image {int(log_px.isnan().nonzero()[0])}: its log weights hold a NaN: look for NaN in the model's parameters, or a "
            "refined guide given other images"
        )


def _words(proposal: Proposal) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in vars(proposal).items())
    return type(proposal).__name__.lower() + (f"({settings})" if settings else "")


def _score(draw: Draw, sums: WeightSums, chunk: int, curve: dict[int, Any]) -> ImageSums:
    """All K draws of one tile of images, in chunks; rows that only fill the tile are dropped."""
    while sums.seen < sums.num_samples:
        stop = next(k for k in curve if k > sums.seen)
        sums.add(draw(min(chunk, stop - sums.seen))[:, : len(sums.largest)])
        if sums.seen == stop:
            curve[stop] = curve[stop] + sums.log_mean().sum()
    return sums.finish()


def _tiles(num_samples: int, rows: int) -> tuple[int, int]:
    """Draws and images of one run of the model: about ``rows`` together, the draws dividing the curve's stops evenly."""
    common = gcd(*_stops(num_samples))
    fits = [n for n in range(1, min(common, rows) + 1) if common % n == 0]
    chunk = fits[-1] if fits[-1] >= min(num_samples, rows) // 16 else min(num_samples, rows)
    return chunk, max(1, rows // chunk)


def _padded(x: Tensor, fields: Mapping[str, Tensor], tile: int, pair: Pair) -> tuple[Tensor, dict[str, Tensor]]:
    """A tile of exactly ``tile`` images, the first ones again where there are fewer: one shape, one program."""
    rows = torch.arange(tile, device=x.device) % len(x)
    return pair.cast(x[rows]), {name: value[rows] for name, value in fields.items()}


def _tiled(source: Source, tile: int, shown: bool) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    with tqdm(total=source.num_images, unit="image", disable=not shown, dynamic_ncols=True) as bar:
        for images, named in source.in_order():
            for start in range(0, len(images), tile):
                rows = slice(start, start + tile)
                yield images[rows], {name: value[rows] for name, value in named.items()}
                bar.update(len(images[rows]))


def _stops(num_samples: int) -> list[int]:
    """The k at which the curve is read: K/10, K/2, K."""
    return sorted({max(1, num_samples // 10), max(1, num_samples // 2), num_samples})


def _refuse(pair: Pair, source: Source, proposal: Proposal) -> None:
    images, named = next(source.in_order())
    if isinstance(source, Resident):
        few = pair.cast(source.x[:5])
        proposal.check(pair.structure(few, {name: value[:5] for name, value in source.fields.items()}))
        explain.check_all_support(pair, pair.cast(source.x), source.fields)
    else:
        proposal.check(pair.structure(pair.cast(images), named))


def _mode_notes(pair: Pair) -> tuple[str, ...]:
    names = sorted({type(m).__name__ for m in pair.modules if m.training and isinstance(m, _MODE_DEPENDENT)})
    return (
        (f"{', '.join(names)} in train mode: evaluated in eval mode, as images must not depend on each other",)
        if names
        else ()
    )


def _figure(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _share(value: float) -> str:
    return f"{value:.1%}" if value == value else "unknown (too few draws)"


def _shorten(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
