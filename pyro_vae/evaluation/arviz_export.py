"""An estimate of log p(x) for other tools: per-image tables, ArviZ's ELPD, InferenceData of a few
posteriors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.analysis.encode import decode, visit_images
from pyro_vae.analysis.latents import by_draw, prior_draws, weighted_draws
from pyro_vae.errors import UserError
from pyro_vae.evaluation.arviz_compat import elpd_data, inference_data
from pyro_vae.evaluation.protocol import Digest
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.fields import as_fields
from pyro_vae.files import write_atomically
from pyro_vae.formatting import figure, quantity
from pyro_vae.pair.layouts import rows_first
from pyro_vae.pair.log_weights import refuse_unscorable
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.tensors import as_images
from pyro_vae.validation import check_count

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    import xarray


SOUND_KHAT, SOUND_ESS = 0.5, 300.0
"""Where an image's nominal 95% interval covers: k̂ below, and the weights' ESS at least
(evaluation.md, measured).
"""

UNSOUND = "interval unsound"
MOST_CANDIDATES = 20_000


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def per_image_table(ll: LogMarginal) -> pandas.DataFrame:
    """One row an image, in nats: log_px, se, bias, ess, khat, max_weight_share, lower, upper, flag.

    ``bias`` is −se²/2; ``lower`` and ``upper`` are log_px − bias ± 1.96 se. The flag says
    ``interval unsound`` unless k̂ < 0.5 and ESS ≥ 300.
    """
    import pandas

    figures = {
        name: getattr(ll, name).double().cpu().numpy()
        for name in ("log_px", "se", "ess", "khat", "max_weight_share")
    }
    bias = -np.square(figures["se"]) / 2
    centre, half = figures["log_px"] - bias, 1.96 * figures["se"]
    return pandas.DataFrame(
        {
            "image": np.arange(ll.num_images),
            "log_px": figures["log_px"],
            "se": figures["se"],
            "bias": bias,
            "ess": figures["ess"],
            "khat": figures["khat"],
            "max_weight_share": figures["max_weight_share"],
            "lower": centre - half,
            "upper": centre + half,
            "flag": np.where(sound(ll), "", UNSOUND),
        }
    )


def sound(ll: LogMarginal) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each image's interval can be read, ``(N,)``: exact, or k̂ < 0.5 and ESS ≥ 300; an
    unknown k̂ is none.
    """
    return (((ll.khat < SOUND_KHAT) & (ll.ess >= SOUND_ESS)) | ll.exact).cpu().numpy()


def write_per_image_csv(ll: LogMarginal, path: str | Path) -> Path:
    """Write `per_image_table` as CSV, all digits; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, per_image_table(ll).to_csv(index=False).encode())
    return path


def summary(ll: LogMarginal) -> str:
    """The headline, and below it what a reader who doubts it asks next."""
    curve = "  ".join(f"{figure(value)} (K = {k})" for k, value in sorted(ll.curve.items()))
    order = torch.argsort(ll.log_px)[: min(5, ll.num_images)].tolist()
    worst = ", ".join(f"{i}: {figure(float(ll.log_px[i]))}" for i in order)
    lines = [
        str(ll),
        f"  95% lower bound on the mean, whatever the weights: {figure(ll.lower95)}",
        f"  first k of the same draws: {curve}; ELBO {figure(ll.elbo)}",
        f"  jackknifed, which is no bound: {figure(ll.debiased)}",
        f"  ESS by image: {_quantiles(ll.ess, 0)}",
        f"  k̂ by image: {_quantiles(ll.khat, 2)}",
        f"  largest weight's share by image: {_quantiles(ll.max_weight_share, 3)}",
        f"  sound per-image intervals (k̂ < {SOUND_KHAT:g} and ESS ≥ {SOUND_ESS:.0f}): "
        f"{int(sound(ll).sum())} of {ll.num_images}",
        f"  lowest {quantity(ll.protocol)}, by image: {worst}",
    ]
    return "\n".join(lines)


def _quantiles(values: Tensor, digits: int) -> str:
    known = values[~values.isnan()].double().cpu().numpy()
    if not len(known):
        return "unknown (too few draws)"
    # the observed value nearest to each quantile: k̂ may be −inf, between which nothing can be
    # interpolated
    found = np.quantile(known, [0.0, 0.05, 0.5, 0.95, 1.0], method="nearest")
    named = zip(("min", "5%", "median", "95%", "max"), found, strict=True)
    unknown = f"  ({len(values) - len(known)} unknown)" if len(known) < len(values) else ""
    return "  ".join(f"{name} {figure(float(value), digits)}" for name, value in named) + unknown


# ---------------------------------------------------------------------------------------------------------------------
# ArviZ


def to_elpd(ll: LogMarginal) -> Any:
    """log p(x) of each image as ArviZ's ELPD data: ``az.compare``, ``az.plot_compare`` and
    ``az.plot_khat`` take it.
    """
    return elpd_data(
        ll.log_px.double().cpu().numpy(), ll.khat.double().cpu().numpy(), ll.num_samples
    )


@takes_fields
def to_inference_data(
    ll: LogMarginal,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_images: int = 8,
    num_draws: int = 500,
    seed: int = 0,
    device: str | torch.device = "auto",
    **fields: Any,
) -> Any:
    """The first images' posteriors as ``az.InferenceData`` (0.23) or ``xarray.DataTree`` (1.x).

    Groups: ``posterior``, z ~ p(z | x) by resampling the guide's draws by their weights, ``(chain =
    1, draw, image, …)``; ``posterior_predictive``; ``prior``; ``observed_data``; ``constant_data``,
    the per-image fields and figures, of which ``resampling_ess`` is the number of draws that each
    image's posterior rests on. Attributes: the protocol. There is no
    ``log_likelihood``: of log weights ``az.loo`` would make a harmonic mean.

    Args:
        x: the very tensor that ``ll`` is of.
        num_draws: of each image's posterior, resampled from as many of the guide's as ``ll`` had
            (at most 20 000).

    Raises:
        UserError: ``x`` is not what ``ll`` is of; the guide has no density.
    """
    check_count("num_images", num_images)
    check_count("num_draws", num_draws)
    images = as_images(x)
    _refuse_other_images(ll, images)
    num_images = min(num_images, len(images))
    few = {name: rows[:num_images] for name, rows in as_fields(fields, len(images)).items()}
    candidates = min(max(ll.num_samples, num_draws), MOST_CANDIDATES)
    options: dict[str, Any] = {"device": device, "seed": seed}
    with visit_images(model, guide, images[:num_images], num_images, fields=few, **options) as (
        pair,
        batches,
    ):
        batch, named = next(iter(batches))
        refuse_unscorable(pair, batch, named)
        log_weights, drawn = weighted_draws(pair, batch, named, candidates)
        chosen = resample(log_weights, num_draws)
        posterior = {
            name: value[chosen, torch.arange(num_images, device=value.device)]
            for name, value in drawn.items()
        }
        prior = prior_draws(pair, batch, named, num_draws)
        observed = _observed(pair, batch, named)
    rows = {name: value.flatten(0, 1) for name, value in posterior.items()}
    options |= {
        name: value.repeat(num_draws, *[1] * (value.dim() - 1)) for name, value in named.items()
    }
    predicted = decode(model, rows, like=images[:1], mean=False, guide=guide, **options)
    ess = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    figures = {name: getattr(ll, name)[:num_images] for name in ("log_px", "se", "ess", "khat")}
    named_draws = _Naming(images.shape[1:], named["index"].cpu(), num_draws)
    groups = {
        "posterior": named_draws.latents(posterior),
        "posterior_predictive": named_draws.images(
            {n: by_draw(v, num_draws) for n, v in predicted.items()}
        ),
        "prior": named_draws.latents(prior),
        "observed_data": named_draws.images(observed, drawn=False),
        "constant_data": named_draws.latents(
            {**named, **figures, "resampling_ess": ess}, drawn=False
        ),
    }
    said = {
        **ll.protocol,
        "posterior": f"{num_draws} of {candidates} draws of the guide, resampled by weight, seed {seed}",
    }
    return inference_data(groups, {name: _attribute(value) for name, value in said.items()})


def resample(log_weights: Tensor, num_draws: int) -> Tensor:
    """Indices of ``num_draws`` draws of each image, by weight, ``(num_draws, B)``, in random order.

    Systematic: draw k is chosen ⌊n wₖ⌋ or ⌈n wₖ⌉ times, n wₖ in expectation, so that equal weights
    lose no draw in n.
    """
    weights = log_weights.softmax(0)
    start = torch.rand(1, weights.shape[1], dtype=weights.dtype, device=weights.device)
    at = (
        torch.arange(num_draws, dtype=weights.dtype, device=weights.device).unsqueeze(1) + start
    ) / num_draws
    edges = weights.cumsum(0)
    edges = edges / edges[-1]
    chosen = torch.searchsorted(edges.T.contiguous(), at.T.contiguous(), right=True).T.clamp(
        max=len(weights) - 1
    )
    order = torch.rand(chosen.shape, device=chosen.device).argsort(0)
    return chosen.gather(0, order)


def _refuse_other_images(ll: LogMarginal, x: Tensor) -> None:
    digest = Digest().add(x).hex()
    if digest != ll.protocol.get("sha256", digest) or len(x) != ll.num_images:
        raise UserError(
            f"x ({len(x)} images, sha256 {digest[:12]}…) is not what log p(x) was estimated of "
            f"({ll.num_images} images, sha256 {str(ll.protocol.get('sha256', 'unknown'))[:12]}…): "
            "give that very tensor; the first num_images of it are used"
        )


def _observed(pair: Pair, x: Tensor, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    terms = pair.run(x, fields)
    return {
        name: rows_first(site.value, site.fn, site.dim) for name, site in terms.observed.items()
    }


class _Naming:
    """Tensors as xarray's variables: their dimensions have the names of what they count."""

    def __init__(self, event_shape: torch.Size, index: Tensor, num_draws: int) -> None:
        self.event_shape = tuple(event_shape)
        self.leading = {
            "chain": np.zeros(1, int),
            "draw": np.arange(num_draws),
            "image": index.numpy(),
        }

    def latents(self, values: Mapping[str, Tensor], drawn: bool = True) -> xarray.Dataset:
        """Latents ``(draw, image, …)`` or fields ``(image, …)``; the only site's vector is called
        ``latent``.
        """
        alone = len(values) == 1
        return self._dataset(
            values,
            drawn,
            lambda name, shape: _numbered("latent" if alone else _of(name), len(shape)),
        )

    def images(self, values: Mapping[str, Tensor], drawn: bool = True) -> xarray.Dataset:
        """Images ``(draw, image, …)`` or ``(image, …)`` in the shape of x, where they have as many
        numbers as it.
        """
        size, skipped = int(np.prod(self.event_shape)), 2 if drawn else 1
        shaped = {
            name: value.reshape(*value.shape[:skipped], *self.event_shape)
            if int(np.prod(value.shape[skipped:])) == size
            else value
            for name, value in values.items()
        }
        axes = {1: ["pixel"], 2: ["height", "width"], 3: ["channel", "height", "width"]}

        def names(name: str, shape: tuple[int, ...]) -> list[str]:
            known = axes.get(len(shape)) if shape == self.event_shape else None
            return known or _numbered(_of(name), len(shape))

        return self._dataset(shaped, drawn, names)

    def _dataset(
        self,
        values: Mapping[str, Tensor],
        drawn: bool,
        names: Callable[[str, tuple[int, ...]], list[str]],
    ) -> xarray.Dataset:
        import xarray

        leading = ["chain", "draw", "image"] if drawn else ["image"]
        variables = {}
        for name, value in values.items():
            array = value.detach().cpu().numpy()
            array = array[None] if drawn else array
            dims = names(name, array.shape[len(leading) :])
            if name in dims:  # a variable of a dimension's name would be its coordinate
                dims = _numbered(_of(name), len(dims))
            variables[f"{name}_value" if name in self.leading else name] = (
                [*leading, *dims],
                array,
            )
        return xarray.Dataset(variables, coords={name: self.leading[name] for name in leading})


def _of(site: str) -> str:
    """ArviZ's own name for a variable's dimension."""
    return f"{site}_dim"


def _numbered(name: str, number: int) -> list[str]:
    return [name] if number == 1 else [f"{name}_{i}" for i in range(number)]


def _attribute(value: Any) -> str | int | float:
    """What a netCDF file can hold."""
    if isinstance(value, str | float) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, default=str)
