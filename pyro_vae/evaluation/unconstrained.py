"""A pair in unconstrained space: log q(u | x) and log p(x, u), u all latent sites as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.analysis.latents import Given, is_periodic
from pyro_vae.errors import UserError
from pyro_vae.pair.layouts import draw_alone, run, run_alone
from pyro_vae.pair.log_weights import refuse_own_draws, refuse_unscorable
from pyro_vae.pair.nodes import Fields, copies, latent_nodes, plain_draw, taken
from pyro_vae.pair.runtime import Pair

PROBE_IMAGES = 5


@dataclass(frozen=True)
class Point:
    """The two ends of an annealing path at u, with their gradients."""

    u: Tensor  # (C, B, d)
    log_q: Tensor  # (C, B), nats
    log_p: Tensor  # (C, B), nats
    grad_q: Tensor  # (C, B, d)
    grad_p: Tensor  # (C, B, d)


class Unconstrained:
    """log q(u | x) and log p(x, u) for C chains at each of B images, u being ``(C, B, d)``.

    Each latent site's z is t(u_s) with t = ``biject_to(support)``, and both log densities carry log
    |det ∂z/∂u|, so that their difference is the log weight at z. The methods run inside
    ``pair.active`` and take tiles of images.

    Raises:
        UserError: a guide that can't be used so, in one sentence: a point mass, a discrete latent,
            a subsampling plate, a scaled site, a flow that can't score any z but its own last draw.
    """

    def __init__(self, pair: Pair, x: Tensor, fields: Fields, num_chains: int) -> None:
        self.pair, self.num_chains = pair, num_chains
        structure = pair.structure(x, fields)
        refuse_unfit(pair, x, fields)
        self.geometry = structure.geometry
        self.layout = pair.layout(x, fields)
        with pair.probing():
            few = taken(x, fields, slice(1))
            nodes = draw_alone(pair.guide, *few, 1, self.geometry, on_rows=True)
            self.dims = {name: self.geometry.frame(node).dim for name, node in nodes.items()}
            self.periodic = tuple(
                name for name, node in nodes.items() if is_periodic(node["fn"], node["value"])
            )
            parts = self._coordinates(nodes, chained=False, batch_size=1)
        self.slices: dict[str, slice] = {}
        for name, part in parts.items():
            start = self.num_dims
            self.slices[name] = slice(start, start + part.shape[-1])

    @property
    def num_dims(self) -> int:
        """d, over all latent sites."""
        return max((part.stop for part in self.slices.values()), default=0)

    def draw(self, x: Tensor, fields: Fields) -> Tensor:
        """u of C fresh draws of the guide, ``(C, B, d)``."""
        with torch.no_grad():
            on_rows = self.layout == "repeat"
            nodes = draw_alone(
                self.pair.guide, x, fields, self.num_chains, self.geometry, on_rows=on_rows
            )
        return self._joined(self._coordinates(nodes, chained=True, batch_size=len(x)))

    def locate(self, x: Tensor, fields: Fields, values: Mapping[str, Tensor]) -> Tensor:
        """u of given latent values, ``(B, *other plates, *event)`` by site; every chain the same,
        ``(C, B, d)``.
        """
        with torch.no_grad(), Given(values, self.dims):
            nodes = draw_alone(self.pair.guide, x, fields, 1, self.geometry, on_rows=True)
        u = self._joined(self._coordinates(nodes, chained=False, batch_size=len(x)))
        return u.expand(self.num_chains, -1, -1).contiguous()

    def terms(self, u: Tensor, x: Tensor, fields: Fields) -> tuple[Tensor, Tensor]:
        """(log q(u | x), log p(x, u)), each ``(C, B)``, in nats."""
        with _At(self, u, len(x)) as at:
            programs, how = (self.pair.model, self.pair.guide), (self.geometry, self.layout)
            terms = run(*programs, x, fields, self.num_chains, *how)
        log_q: Tensor = sum((site.log_prob for site in terms.guide.values()), at.log_det)
        log_p: Tensor = sum(
            (site.log_prob for site in (terms.prior | terms.observed).values()), at.log_det
        )
        return log_q, log_p

    def log_guide(self, u: Tensor, x: Tensor, fields: Fields) -> Tensor:
        """log q(u | x) alone, ``(C, B)``: the model does not run."""
        with _At(self, u, len(x)) as at:
            on_rows = self.layout == "repeat"
            _, sites = run_alone(
                self.pair.guide, x, fields, self.num_chains, self.geometry, on_rows=on_rows
            )
        return sum((site.log_prob for site in sites.values()), at.log_det)

    def differentiate(
        self, u: Tensor, x: Tensor, fields: Fields
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The terms and their gradients in u: (log q, log p, ∇ log q, ∇ log p)."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_q, log_p = self.terms(u, x, fields)
            # not of the sums, of which autograd would ask ones_like: a graph of the gradients alone
            # then misses the densities
            ones = u.new_ones(u.shape[:-1])
            (grad_q,) = torch.autograd.grad(log_q, u, ones, retain_graph=True)
            (grad_p,) = torch.autograd.grad(log_p, u, ones)
        return log_q.detach(), log_p.detach(), grad_q, grad_p

    # ---- how u is along a site's batch dimensions

    def positions(self, name: str, num_batch: int, chained: bool) -> tuple[int, ...]:
        """Where (chain, image), or both as one row, are among a site's batch dimensions."""
        image = num_batch + self.dims[name]
        if not chained or self.layout == "repeat":
            return (image,)
        return num_batch + self.geometry.particle_dim, image

    def _coordinates(
        self, nodes: Mapping[str, Any], chained: bool, batch_size: int
    ) -> dict[str, Tensor]:
        """Each latent site's u, ``(C, B, n)``, at the guide's values; C is 1 where they have no
        chains.
        """
        found = {}
        for name, node in nodes.items():
            if not node["is_observed"]:
                places = self.positions(name, len(node["fn"].batch_shape), chained)
                u = biject_to(node["fn"].support).inv(node["value"])
                u = u.movedim(places, tuple(range(len(places))))
                u = u if len(places) == 2 else u.unflatten(0, (-1, batch_size))
                found[name] = u.reshape(*u.shape[:2], -1)
        return found

    def _joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([parts[name] for name in self.slices], dim=-1)


class _At(Messenger):
    """Entered outside the plates: a latent statement of the guide returns t(u_s), and log |det| is
    summed, ``(C, B)``.
    """

    def __init__(self, space: Unconstrained, u: Tensor, batch_size: int) -> None:
        super().__init__()
        self.space, self.u, self.batch_size = space, u, batch_size
        self.log_det: Tensor = u.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        # the model's own, replayed, are done
        if msg["done"] or msg["name"] not in self.space.slices:
            return
        fn = msg["fn"]
        transform, num_batch = biject_to(fn.support), len(fn.batch_shape)
        event = transform.inverse_shape(fn.batch_shape + fn.event_shape)[num_batch:]
        places = self.space.positions(msg["name"], num_batch, chained=True)
        others = [size for dim, size in enumerate(fn.batch_shape) if dim not in places]
        lead = self.u.shape[:2] if len(places) == 2 else (self.u.shape[0] * self.u.shape[1],)
        rows = self.u[..., self.space.slices[msg["name"]]].reshape(*lead, *others, *event)
        u = rows.movedim(tuple(range(len(places))), places)
        value = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        log_det = log_det.flatten(num_batch).sum(-1) if log_det.dim() > num_batch else log_det
        log_det = log_det.movedim(places, tuple(range(len(places)))).reshape(*self.u.shape[:2], -1)
        self.log_det = self.log_det + log_det.sum(-1)
        msg["value"], msg["done"] = value, True


def refuse_unfit(pair: Pair, x: Tensor, fields: Fields) -> None:
    """A ``UserError`` where the pair has no density in unconstrained space that can be evaluated at
    any u.
    """
    refuse_unscorable(pair, x, fields)
    structure = pair.structure(x, fields)
    if not structure.latents:
        raise UserError(
            "the pair has no latent site, so its log weights are already log p(x): use log_marginal"
        )
    few = copies(*taken(x, fields, slice(PROBE_IMAGES)))
    with pair.probing():
        for name, node in latent_nodes(plain_draw(pair.guide, *few)).items():
            support, kind = node["fn"].support, type(node["fn"]).__name__
            if support.is_discrete:
                raise UserError(
                    f"latent site {name!r} is discrete ({kind}), but AIS and proposal='Defensive' "
                    "need a continuous z: use log_marginal with the guide as proposal, or sum "
                    "that site out in the model"
                )
            try:
                biject_to(support)
            except NotImplementedError:
                raise UserError(
                    f"latent site {name!r}: no bijection from unconstrained space onto the support "
                    f"{support} of {kind} is registered: register one with "
                    "torch.distributions.biject_to"
                ) from None
        refuse_own_draws(
            structure,
            "AIS and proposal='Defensive' score others: use a guide whose log_prob takes any z, "
            "such as MeanField, IAF or an inverted zuko flow",
        )
        pair.run(*few, 1).log_weights()  # refuses scaled sites
