"""Site terms: the log density of each site, (K, B), and log weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.errors import UserError


@dataclass(frozen=True)
class Site:
    """One sample site of one program: its density at the value that was drawn or observed."""

    log_prob: Tensor  # (K, B), nats, unscaled, masked, summed over all other dimensions
    scale: (
        float | Tensor
    )  # what plates and poutine.scale multiply it by in Pyro's losses; (K, B) where images differ
    value: Tensor  # (K, B, *event) for a latent, as observed otherwise
    fn: TorchDistribution
    mask: Tensor | bool | None
    score_term: (
        Tensor | None
    )  # (K, B), log_prob again where the draw is not reparameterised, else None
    dim: int  # the data plate's, among the site's batch dimensions
    plate: str = "data"  # its name
    # log_prob is a mixture over a site that is summed out, and ``fn`` its components, in front
    mixed: bool = False
    particle_dim: int | None = None  # the particles', where they have a dimension of their own
    # (K, B), nats: log q(y | x) of a site of the guide that is enumerated, at each of its values
    log_share: Tensor | None = None

    def rows(self, value: Tensor | None = None) -> Tensor:
        """The site's value, or another one of its batch shape, with the images in front: ``(rows,
        *other plates, *event)``.
        """
        return rows_first(self.value if value is None else value, self.fn, self.dim)


@dataclass(frozen=True)
class SiteTerms:
    """All sites of one run of the pair, model sites in the model's order, guide sites in the
    guide's.

    ``observed`` has log p(x | …), ``prior`` log p(z | …), ``guide`` log q(z | …), each by site
    name, in nats. A discrete site that is not in the guide is in none of them: the others'
    densities are those with that site summed out. A site of the guide that is enumerated makes each
    draw V rows, one a value: K is then V · ``num_particles``, and the rows of one draw are weighted
    by `shares`.
    """

    num_particles: int
    batch_size: int
    plate_scale: float  # full size over batch size of the data plate: 1, unless it subsamples
    observed: dict[str, Site] = field(default_factory=dict)
    prior: dict[str, Site] = field(default_factory=dict)
    guide: dict[str, Site] = field(default_factory=dict)
    model_order: tuple[str, ...] = ()

    @property
    def shares(self) -> Tensor | None:
        """q(y | x) of the row of each value of the enumerated sites y, ``(K, B)``; none without."""
        logs = [site.log_share for site in self.guide.values() if site.log_share is not None]
        total: Any = sum(logs)
        return total.exp() if logs else None

    def expected(self) -> SiteTerms:
        """The terms of a mean over draws: their sum over rows is Σ_y q(y | x) of it, by `shares`,
        and log q has no gradient where a draw has no path, as E[∇ log q] = 0.
        """
        shares = self.shares

        def weighted(sites: dict[str, Site]) -> dict[str, Site]:
            return {
                name: replace(site, log_prob=times_shares(site.log_prob, shares))
                for name, site in sites.items()
            }

        held = {
            name: site
            if site.score_term is None
            else replace(site, log_prob=site.log_prob.detach())
            for name, site in self.guide.items()
        }
        return replace(
            self,
            observed=weighted(self.observed),
            prior=weighted(self.prior),
            guide=weighted(held),
        )

    def log_weights(self) -> Tensor:
        """log p(x, z) − log q(z | x), ``(num_particles, B)``; a ``UserError`` where a site carries
        a scale (IWAE, equation 8).

        Enumerated sites y are summed over, log Σ_y p(x, y, z_y) / q(z_y | x, y), from which q(y |
        x) drops out.
        """
        for role, sites in (("model", {**self.observed, **self.prior}), ("guide", self.guide)):
            for name, site in sites.items():
                if not same_scale(site.scale, 1.0):
                    raise UserError(
                        f"site {name!r} of the {role} is scaled by {scale_words(site.scale)} (a "
                        "subsampling plate or poutine.scale), so its log weights are not those "
                        "of p(x): use pyro.plate(name, x.shape[0]) without a scale, or score "
                        "with ignore_scales=True"
                    )
        model: Any = sum(site.log_prob for site in (self.prior | self.observed).values())
        drawn = [site for site in self.guide.values() if site.log_share is None]
        weights: Tensor = model - sum(site.log_prob for site in drawn)
        if len(drawn) < len(self.guide):
            weights = weights.unflatten(0, (-1, self.num_particles)).logsumexp(0)
        return weights


def times_shares(log_prob: Tensor, shares: Tensor | None) -> Tensor:
    """``log_prob`` times the share of each row; a row without any has 0, whatever its density."""
    if shares is None:
        return log_prob
    return shares * log_prob.where(shares > 0, 0.0)


def same_scale(scale: float | Tensor, other: float | Tensor) -> bool:
    """Whether two scales are equal, by value."""
    same = scale == other
    return bool(same.all()) if isinstance(same, Tensor) else same


def scale_words(scale: float | Tensor) -> str:
    """A scale in a sentence."""
    return (
        "one weight an image" if isinstance(scale, Tensor) and scale.dim() else f"{float(scale):g}"
    )


def rows_first(value: Tensor, fn: Any, data_dim: int) -> Tensor:
    return value.movedim(len(fn.batch_shape) + data_dim, 0)
