"""Mutual information of image and latent, and the marginal KL: the two parts of E KL(q(z | x) ‖
p(z)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.latents import Given
from pyro_vae.errors import UserError
from pyro_vae.formatting import Result
from pyro_vae.pair.layouts import run_alone
from pyro_vae.pair.log_weights import refuse_no_latents, refuse_unscorable
from pyro_vae.pair.nodes import Fields
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.terms import Site
from pyro_vae.tensors import slices

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
        """log N, the largest mutual information that N images can show."""
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
        on_rows = pair.layout(images, named) == "repeat"
        density = cross_density(pair, images, named, terms.guide, on_rows=on_rows)
    return _split(density.double().cpu(), own[0].double().cpu(), prior[0].double().cpu())


def cross_density(
    pair: Pair, x: Tensor, fields: Fields, sites: Mapping[str, Site], *, on_rows: bool
) -> Tensor:
    """log q(z_n | x_m), ``(n, m)``: every image's draw under every image's posterior.

    Args:
        sites: the guide's, at one draw of each of the images.
        on_rows: whether the guide runs on rows, its encoder once a pair; else under a plate of
            particles, once a block of draws.
    """
    at, values = pair.structure(x, fields).geometry, {n: site.rows() for n, site in sites.items()}
    dims, particle_dim = {n: site.dim for n, site in sites.items()}, at.particle_dim
    width = sum(value[0].numel() for value in values.values()) + x[0].numel() * on_rows
    parts = []
    for rows in slices(len(x), max(1, ENTRIES // (len(x) * width))):
        given, number = (
            {n: value[rows].unsqueeze(1) for n, value in values.items()},
            rows.stop - rows.start,
        )
        if on_rows:  # every image at each of them
            given = {
                n: value.repeat_interleave(len(x), 0).flatten(0, 1) for n, value in given.items()
            }
        try:
            with Given(given, dims, None if on_rows else particle_dim):
                _, found = run_alone(pair.guide, x, fields, number, at, on_rows=on_rows)
        except NotImplementedError as error:
            raise UserError(
                "the guide's density can't be evaluated at the draw of another image "
                f"({error}): mutual information needs a guide whose log_prob takes any z, not a "
                "flow without an inverse"
            ) from error
        parts.append(sum((site.log_prob for site in found.values()), x.new_zeros(())))
    return torch.cat(parts)


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
