"""How much a latent says about its image: KL(q(z | x) ‖ p(z)), averaged, is mutual information +
KL(q(z) ‖ p(z)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.errors import UserError
from pyro_vae.formatting import Result
from pyro_vae.pair.layouts import (
    PARTICLE_PLATE,
    Fields,
    SiteTerms,
    draw_alone,
    log_prob_of,
    masked,
    per_image,
    repeated,
)
from pyro_vae.pair.log_weights import refuse_no_latents, refuse_unscorable
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields

ENTRIES = 4_000_000
"""Numbers in one block of draws × images × latent dimensions: 32 MB in float64."""


@dataclass(frozen=True)
class Information(Result):
    """Nats, from one draw z of each of N images; ``rate`` = ``mutual_information`` +
    ``marginal_kl``, identically.

    With q(z) = (1/N) Σ_m q(z | x_m), the aggregate posterior of these N images (Hoffman & Johnson
    2016, ELBO surgery): I = mean_n log q(z_n | x_n)/q(z_n), at most log N; marginal KL = mean_n log
    q(z_n)/p(z_n). Errors are jackknife, the images being the sample.
    """

    figures: ClassVar[tuple[str, ...]] = (
        *("mutual_information", "mutual_information_se", "marginal_kl", "marginal_kl_se"),
        *("rate", "rate_se", "num_images", "ceiling", "estimator"),
    )
    estimator: ClassVar[str] = "aggregate posterior of the same images, jackknife"

    mutual_information: float
    mutual_information_se: float
    marginal_kl: float
    marginal_kl_se: float
    rate: float
    rate_se: float
    num_images: int

    @property
    def ceiling(self) -> float:
        """log N: what N images can tell apart."""
        return log(self.num_images)

    @property
    def at_ceiling(self) -> bool:
        """Whether I is so near log N that it says no more than "at least this"."""
        return self.mutual_information > self.ceiling - 1.0

    def lines(self) -> list[str]:
        """Both parts and their sum, and how they were estimated."""
        signs = ("≥", "≤") if self.at_ceiling else ("=", "=")
        line = f"mutual information I(x; z) {signs[0]} {self.mutual_information:.2f} ± "
        line += f"{self.mutual_information_se:.2f} nats; KL(q(z) ‖ p(z)) {signs[1]} "
        line += f"{self.marginal_kl:.2f} ± {self.marginal_kl_se:.2f}; their sum, the rate, "
        how = (
            "  aggregate estimator: one draw for each image; q(z) is the mixture of q(z | x) "
            "over the "
        )
        how += f"same {self.num_images} images, whose ceiling is log N = {self.ceiling:.2f}; "
        return [
            f"{line}{self.rate:.2f} ± {self.rate_se:.2f}",
            f"{how}errors by the jackknife over images",
        ]


@takes_fields
def mutual_information(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_images: int = 1000,
    seed: int = 0,
    device: str | torch.device = "auto",
    **fields: Any,
) -> Information:
    """Split the KL of the first ``num_images`` images into mutual information and the KL of the
    aggregate.

    Raises:
        UserError: fewer than two images; a guide without a density, or whose density can't be had
            at another's draw.
    """
    with visit_images(model, guide, x, num_images, device, seed, fields) as (pair, batches):
        images, named = next(iter(batches))
        if len(images) < 2:
            raise UserError("mutual information needs two images or more")
        refuse_no_latents(pair.structure(images, named))
        refuse_unscorable(pair, images, named)
        terms = pair.run(images, named)
        own: Any = sum(site.log_prob for site in terms.guide.values())
        prior: Any = sum(site.log_prob for site in terms.prior.values())
        values = {name: site.rows() for name, site in terms.guide.items()}
        density = cross_density(pair, images, named, values)
    return _split(density.double().cpu(), own[0].double().cpu(), prior[0].double().cpu())


def cross_density(pair: Pair, x: Tensor, fields: Fields, values: Mapping[str, Tensor]) -> Tensor:
    """log q(z_n | x_m), ``(n, m)``: every image's draw, given as ``(n, …)`` by site, under every
    image's posterior.

    The encoder runs once a block of draws where the guide can run under a plate of particles, once
    a pair elsewhere.
    """
    number = len(next(iter(values.values())))
    width = sum(value[0].numel() for value in values.values()) + x[0].numel() * (
        pair.layout(x, fields) == "repeat"
    )
    block = max(1, ENTRIES // (len(x) * width))
    density = _by_plate if pair.layout(x, fields) in ("plate", "rows") else _by_rows
    parts = []
    for start in range(0, number, block):
        given = {name: value[start : start + block] for name, value in values.items()}
        try:
            parts.append(density(pair, x, fields, given))
        except NotImplementedError as error:
            raise UserError(
                "the guide's density can't be evaluated at the draw of another image "
                f"({error}): mutual information needs a guide whose log_prob takes any z, not a "
                "flow without an inverse"
            ) from error
    return torch.cat(parts)


def _by_plate(pair: Pair, x: Tensor, fields: Fields, given: Mapping[str, Tensor]) -> Tensor:
    at, number = pair.structure(x, fields).geometry, len(next(iter(given.values())))

    def laid(value: Tensor, node: Any) -> Tensor:
        """``(K, *other plates, *event)`` with K at the particles' dimension and one at the images'."""
        fn, dim = node["fn"], at.frame(node).dim
        batch = len(fn.batch_shape)
        value = value.unsqueeze(1).movedim(1, 1 + batch + dim)
        ones = -at.particle_dim - 1 - batch
        value = value.reshape(number, *[1] * ones, *value.shape[1:])
        shape = list(value.shape)
        shape[value.dim() - fn.event_dim + dim] = len(x)
        return value.expand(shape)

    data = _laid_out(pair, x, fields, given, laid)
    with pyro.plate(PARTICLE_PLATE, number, dim=at.particle_dim):
        return _log_q(pair, x, fields, data, SiteTerms(number, len(x), 1.0), at.particle_dim)


def _by_rows(pair: Pair, x: Tensor, fields: Fields, given: Mapping[str, Tensor]) -> Tensor:
    at, number = pair.structure(x, fields).geometry, len(next(iter(given.values())))

    def laid(value: Tensor, node: Any) -> Tensor:
        rows = value.repeat_interleave(len(x), 0)
        return rows.movedim(0, len(node["fn"].batch_shape) + at.frame(node).dim)

    data = _laid_out(pair, x, fields, given, laid)
    size = SiteTerms(number, len(x), 1.0)
    return _log_q(pair, *repeated(x, fields, number), data, size, None)


def _laid_out(
    pair: Pair,
    x: Tensor,
    fields: Fields,
    given: Mapping[str, Tensor],
    laid: Callable[[Tensor, Any], Tensor],
) -> dict[str, Tensor]:
    """The draws as the guide's sites have them, by a run of the guide that draws for itself."""
    at = pair.structure(x, fields).geometry
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        nodes = draw_alone(pair.guide, x, fields, 1, at, on_rows=True)
    return {name: laid(value, nodes[name]) for name, value in given.items()}


def _log_q(
    pair: Pair,
    x: Tensor,
    fields: Fields,
    data: dict[str, Tensor],
    size: SiteTerms,
    particle_dim: int | None,
) -> Tensor:
    at, guide = pair.structure(x, fields).geometry, poutine.condition(pair.guide, data=data)
    total = torch.zeros((), device=x.device)
    for name, node in draw_alone(guide, x, fields, 1, at, on_rows=True).items():
        if name in data:
            log_prob = masked(log_prob_of(node), node["mask"])
            total = total + per_image(log_prob, size, at.frame(node).dim, particle_dim)
    return total


def _split(density: Tensor, own: Tensor, prior: Tensor) -> Information:
    """From log q(z_n | x_m) ``(N, N)``, its diagonal as the guide itself scored its draws, and log
    p(z_n).
    """
    number = len(own)
    density = density.clone()
    density.diagonal().copy_(own)
    whole = density.logsumexp(1)
    # without image j: row j is gone, and column j from every other row, of which its own image
    # stays
    without = (
        whole.unsqueeze(1) + torch.log1p(-(density - whole.unsqueeze(1)).exp().clamp(max=1.0))
    ).maximum(own.unsqueeze(1))
    rest = 1.0 - torch.eye(number, dtype=density.dtype)
    left = (without * rest).sum(0) / (number - 1) - log(number - 1)  # mean log q(z) of each N − 1
    mean_own, mean_prior = ((v.sum() - v) / (number - 1) for v in (own, prior))
    aggregate = whole.mean() - log(number)

    def jackknife(values: Tensor) -> float:
        return float(((number - 1) / number * (values - values.mean()).square().sum()).sqrt())

    return Information(
        mutual_information=float(own.mean() - aggregate),
        mutual_information_se=jackknife(mean_own - left),
        marginal_kl=float(aggregate - prior.mean()),
        marginal_kl_se=jackknife(left - mean_prior),
        rate=float((own - prior).mean()),
        rate_se=jackknife(mean_own - mean_prior),
        num_images=number,
    )
