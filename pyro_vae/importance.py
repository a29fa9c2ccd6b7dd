"""log p(x) by importance sampling: IW-K with its protocol, two error bars, a bias estimate and diagnostics."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
from pyro_vae.marginal import LogMarginal
from pyro_vae.pair import Pair
from pyro_vae.proposals import Proposal
from pyro_vae.staged_weights import Draw, make_weights
from pyro_vae.tiles import ROWS, padded, stops, tile_sizes, tiled
from pyro_vae.weights import check_count

_MODE_DEPENDENT = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


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
    chunk, tile = tile_sizes(num_samples, ROWS.get(place.type, ROWS["cpu"]))
    source = make_source(x, fields, tile, place)
    tile = min(tile, source.num_images)
    found, digest = _Gathered(num_samples), hashlib.sha256()
    notes = mode_notes(pair) + ((source_of_draws.warning,) if source_of_draws.warning else ())
    with running(pair, place):
        _refuse(pair, source, source_of_draws)
        known, narrow = observed_words(pair, source, bits_offset)
        images, named = padded(*next(source.in_order()), tile, pair)
        weights, how = make_weights(
            pair, source_of_draws.kernel(pair), compile, source.num_images, num_samples, chunk, images, named
        )
        if progress:
            tqdm.write(f"log weights: {how}", file=sys.stderr)
        torch.manual_seed(seed)
        for images, named in tiled(source, tile, progress):
            if not isinstance(source, Resident):
                explain.check_all_support(pair, pair.cast(images), named)
            digest.update(images.cpu().contiguous().numpy().tobytes())
            draw = weights.tile(*padded(images, named, tile, pair))
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
        self.curve: dict[int, Any] = dict.fromkeys(stops(num_samples), 0.0)
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


def _refuse(pair: Pair, source: Source, proposal: Proposal) -> None:
    images, named = next(source.in_order())
    if isinstance(source, Resident):
        few = pair.cast(source.x[:5])
        proposal.check(pair.structure(few, {name: value[:5] for name, value in source.fields.items()}))
        explain.check_all_support(pair, pair.cast(source.x), source.fields)
    else:
        proposal.check(pair.structure(pair.cast(images), named))


def mode_notes(pair: Pair) -> tuple[str, ...]:
    names = sorted({type(m).__name__ for m in pair.modules if m.training and isinstance(m, _MODE_DEPENDENT)})
    return (
        (f"{', '.join(names)} in train mode: evaluated in eval mode, as images must not depend on each other",)
        if names
        else ()
    )
