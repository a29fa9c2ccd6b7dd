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
from pyro_vae.evaluation.digests import Digest
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.fields import as_fields
from pyro_vae.pair.log_weights import refuse_unscorable
from pyro_vae.pair.runtime import Pair
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
            f"x ({len(x)} images, sha256 {digest[:12]}…) is not the data of which log p(x) was "
            f"estimated ({ll.num_images} images, sha256 "
            f"{str(ll.protocol.get('sha256', 'unknown'))[:12]}…): give the same tensor; its "
            "first num_images images are used"
        )


def _observed(pair: Pair, x: Tensor, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    terms = pair.run(x, fields)
    return {name: site.rows() for name, site in terms.observed.items()}


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
    """What a netCDF file can store."""
    if isinstance(value, str | float) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, default=str)
