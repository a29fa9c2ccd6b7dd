"""Export of an estimate: per-image tables, ArviZ's ELPD, InferenceData."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.generate import decode
from pyro_vae.analysis.latents import by_draw, prior_draws, weighted_draws
from pyro_vae.errors import UserError
from pyro_vae.evaluation.arviz_compat import inference_data
from pyro_vae.evaluation.observed import Digest
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.fields import as_fields
from pyro_vae.formatting import shorten
from pyro_vae.pair.log_weights import refuse_unscorable
from pyro_vae.pair.nodes import repeated
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.tensors import as_images
from pyro_vae.validation import check_count

if TYPE_CHECKING:
    import xarray


MOST_CANDIDATES = 20_000


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
    images = as_images(x, missing=True)
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
        observed = {n: site.rows() for n, site in pair.run(batch, named).observed.items()}
    rows = {name: value.flatten(0, 1) for name, value in posterior.items()}
    options |= repeated(batch, named, num_draws)[1]
    predicted = decode(model, rows, like=images[:1], mean=False, guide=guide, **options)
    predicted = {name: by_draw(value, num_draws) for name, value in predicted.items()}
    ess = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    figures = {name: getattr(ll, name)[:num_images] for name in ("log_px", "se", "ess", "khat")}
    image = {"image": named["index"].cpu().numpy()}
    draws = {"chain": np.zeros(1, int), "draw": np.arange(num_draws), **image}
    groups = {
        "posterior": _dataset(posterior, draws),
        "posterior_predictive": _dataset(predicted, draws, images.shape[1:]),
        "prior": _dataset(prior, draws),
        "observed_data": _dataset(observed, image, images.shape[1:]),
        "constant_data": _dataset({**named, **figures, "resampling_ess": ess}, image),
    }
    how = f"{num_draws} of {candidates} draws of the guide, resampled by weight, seed {seed}"
    said = {**ll.protocol, "posterior": how}
    return inference_data(groups, {name: _attribute(value) for name, value in said.items()})


def resample(log_weights: Tensor, num_draws: int) -> Tensor:
    """Indices of ``num_draws`` draws of each image, by weight, ``(num_draws, B)``, in random order.

    Systematic: draw k is chosen ⌊n wₖ⌋ or ⌈n wₖ⌉ times, n wₖ in expectation, so that equal weights
    lose no draw in n.
    """
    weights = log_weights.softmax(0)
    start = torch.rand(1, weights.shape[1], dtype=weights.dtype, device=weights.device)
    at = (torch.arange(num_draws).to(weights).unsqueeze(1) + start) / num_draws
    edges = weights.cumsum(0)
    edges = (edges / edges[-1]).T.contiguous()
    chosen = torch.searchsorted(edges, at.T.contiguous(), right=True).T.clamp(max=len(weights) - 1)
    order = torch.rand(chosen.shape, device=chosen.device).argsort(0)
    return chosen.gather(0, order)


def _refuse_other_images(ll: LogMarginal, x: Tensor) -> None:
    digest, known = Digest().add(x).hex(), ll.protocol.get("sha256", "unknown")
    if known not in ("unknown", digest) or len(x) != ll.num_images:
        raise UserError(
            f"x ({len(x)} images, sha256 {shorten(digest)}) is not the data of which log p(x) was "
            f"estimated ({ll.num_images} images, sha256 {shorten(known)}): give the same tensor; "
            "its first num_images images are used"
        )


AXES = {1: ["pixel"], 2: ["height", "width"], 3: ["channel", "height", "width"]}
"""The dimensions of an image."""


def _dataset(
    values: Mapping[str, Tensor], coords: Mapping[str, Any], event_shape: torch.Size | None = None
) -> xarray.Dataset:
    """Tensors as variables, whose dimensions have the names of what they count: first the
    ``coords``, then those of an image in the shape of x, where there are as many numbers. The only
    latent site's vector is called ``latent``.
    """
    import xarray

    variables = {}
    for name, value in values.items():
        array = value.detach().cpu().numpy()
        array = array[None] if "chain" in coords else array
        lead, own = array.shape[: len(coords)], array.shape[len(coords) :]
        stem = "latent" if event_shape is None and len(values) == 1 else f"{name}_dim"
        dims = _numbered(stem, len(own))
        if event_shape is not None and np.prod(own, dtype=int) == event_shape.numel():
            array = array.reshape(*lead, *event_shape)
            dims = AXES.get(len(event_shape)) or _numbered(stem, len(event_shape))
        if name in dims:  # a variable of a dimension's name would be its coordinate
            dims = _numbered(f"{name}_dim", len(dims))
        own_name = f"{name}_value" if name in ("chain", "draw", "image") else name
        variables[own_name] = [*coords, *dims], array
    return xarray.Dataset(variables, coords=dict(coords))


def _numbered(name: str, number: int) -> list[str]:
    return [name] if number == 1 else [f"{name}_{i}" for i in range(number)]


def _attribute(value: Any) -> str | int | float:
    """What a netCDF file can store."""
    if isinstance(value, str | float) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, default=str)
