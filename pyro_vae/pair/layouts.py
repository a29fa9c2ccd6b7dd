"""The kernel: unscaled log densities of every site, (K, B), for K draws of the guide at each of B
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.errors import UserError
from pyro_vae.pair.enumeration import conditionals, enumerated
from pyro_vae.pair.program import Program

PARTICLE_PLATE = "_pyro_vae_particles"
Fields = Mapping[str, Tensor]


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
        return _rows_first(self.value if value is None else value, self.fn, self.dim)


@dataclass(frozen=True)
class SiteTerms:
    """All sites of one run of the pair, model sites in the model's order, guide sites in the
    guide's.

    ``observed`` holds log p(x | …), ``prior`` log p(z | …), ``guide`` log q(z | …), each by site
    name, in nats. A discrete
    site that the guide lacks is in none of them: the others' densities are those with that site
    summed out. A site of the guide that is enumerated makes each draw V rows, one a value: K is
    then V · ``num_particles``, and the rows of one draw are weighted by `shares`.
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


Score = Callable[[TorchDistribution, Tensor], Tensor]


def plain_score(fn: TorchDistribution, value: Tensor) -> Tensor:
    """``fn.log_prob(value)``: what every run but the evaluator's takes for a site's density."""
    log_prob: Tensor = fn.log_prob(value)
    return log_prob


def log_prob_of(node: Any) -> Tensor:
    """A site's log density as Pyro calls it, with the arguments that its sample statement passes
    on.
    """
    log_prob: Tensor = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return log_prob


Call = Callable[[Tensor, Fields], Any]
Draw = Callable[[Call, Tensor, Fields], poutine.Trace]


def plain_draw(program: Call, x: Tensor, fields: Fields) -> poutine.Trace:
    """A program run once: what every run but a path derivative's takes for the guide's draws and
    their densities.
    """
    with (
        poutine.trace() as handler
    ):  # as a context: as a function's handler it adds a table of shapes to any message
        program(x, fields)
    trace: poutine.Trace = handler.trace
    return trace


@dataclass(frozen=True)
class Geometry:
    """How to run a pair: the names of its data plates, the first free dimension, how the guide is
    run and sites scored.
    """

    data_plates: frozenset[str] = frozenset({"data"})
    particle_dim: int = -2  # left of all plates
    score: Score = plain_score
    draw: Draw = plain_draw
    summed: tuple[str, ...] = ()  # the model's discrete sites that the guide lacks
    # the guide's sites to run at all their values, each with how many it has
    enumerated: Mapping[str, int] = field(default_factory=dict)
    in_place: bool = (
        False  # whether a program writes into its batch, so that each run needs one of its own
    )

    def frame(self, node: Any) -> Any:
        """The data plate of a site, one of its own ``cond_indep_stack``."""
        for frame in node["cond_indep_stack"]:
            if frame.name in self.data_plates:
                return frame
        raise UserError(
            f"site {node['name']!r} is outside the data plate: sample it inside `with "
            "pyro.plate('data', x.shape[0]):`"
        )

    def rows(self, node: Any, value: Tensor | None = None) -> Tensor:
        """`Site.rows` of a site that is not scored."""
        value = node["value"] if value is None else value
        return _rows_first(value, node["fn"], self.frame(node).dim)


LAYOUTS = ("plate", "rows", "repeat")
"""Ways to run a pair for many draws, cheapest first: a pair gets the first one whose values are
those of the last.

``plate``: both programs under an outer plate of K particles, so that the encoder runs once, on B
rows. ``rows``: the guide so, the model on K·B rows. ``repeat``: both on K·B rows, each image K
times, which is right for every pair.
"""


def run(
    model: Program,
    guide: Program,
    x: Tensor,
    fields: Fields,
    num_particles: int,
    at: Geometry,
    layout: str,
) -> SiteTerms:
    """The terms of ``num_particles`` draws at each image."""
    size = SiteTerms(num_particles, x.shape[0], 1.0)
    with _many(x, fields, num_particles, at, on_rows=layout == "repeat") as batch:
        drawn = at.draw(every_value(guide, at), *batch)
        if layout != "rows":
            trace = trace_model(model, drawn, *_own(*batch, at), at)
    if layout == "rows":
        with _many(x, fields, num_particles, at, on_rows=True) as batch:
            trace = trace_model(model, _on_rows(drawn, num_particles, at), *batch, at)
    nodes = dict(sample_nodes(trace))
    sites = _sites(nodes, size, at, at.particle_dim if layout == "plate" else None)
    if at.summed:
        sites = _sum_out(sites, size, at)
    observed, prior = _split(sites, nodes)
    own_dim = None if layout == "repeat" else at.particle_dim
    guide_sites = {
        name: _read(node, size, at, own_dim, values=name in at.enumerated)
        for name, node in latent_nodes(drawn).items()
    }
    frame = at.frame(next(reversed(nodes.values())))
    plate_scale = 1.0 if frame.full_size is None else frame.full_size / frame.size
    return SiteTerms(
        num_particles, x.shape[0], plate_scale, observed, prior, guide_sites, tuple(sites)
    )


def every_value(guide: Call, at: Geometry) -> Call:
    """The guide at all values of the sites that it is to enumerate."""
    return enumerated(guide, at.enumerated, at.particle_dim - 1)


def draw_alone(
    program: Call, x: Tensor, fields: Fields, num_particles: int, at: Geometry, *, on_rows: bool
) -> dict[str, Any]:
    """The sites of one program without the other, unscored: of a guide, or of a model that draws
    its latents.
    """
    with _many(x, fields, num_particles, at, on_rows=on_rows) as batch:
        return dict(sample_nodes(plain_draw(program, *batch)))


def run_alone(
    program: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry, *, on_rows: bool
) -> tuple[dict[str, Site], dict[str, Site]]:
    """The observed and the latent sites of one program without the other."""
    nodes = draw_alone(program, x, fields, num_particles, at, on_rows=on_rows)
    size = SiteTerms(num_particles, x.shape[0], 1.0)
    return _split(
        _sites(nodes, size, replace(at, summed=()), None if on_rows else at.particle_dim), nodes
    )


@contextmanager
def _many(
    x: Tensor, fields: Fields, num_particles: int, at: Geometry, *, on_rows: bool
) -> Iterator[tuple[Tensor, Fields]]:
    """The batch as a program takes it for K draws an image: on K·B rows, or under an outer plate of
    particles.
    """
    x, fields = _own(x, fields, at)
    if on_rows:
        yield repeated(x, fields, num_particles)
    else:
        with pyro.plate(PARTICLE_PLATE, num_particles, dim=at.particle_dim):
            yield x, fields


def _own(x: Tensor, fields: Fields, at: Geometry) -> tuple[Tensor, Fields]:
    """A copy for a program that writes into its batch: the caller's is not ours, and the guide's
    may be in a graph.
    """
    return copies(x, fields) if at.in_place else (x, fields)


def copies(x: Tensor, fields: Fields) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of its own: a program may write into it."""
    return x.clone(), {name: value.clone() for name, value in fields.items()}


def taken(x: Tensor, fields: Fields, rows: slice | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """These rows of a batch."""
    return x[rows], {name: value[rows] for name, value in fields.items()}


def repeated(x: Tensor, fields: Fields, times: int) -> tuple[Tensor, Fields]:
    """All images, then all again, ``times`` times: ``(K·B, …)``."""
    if times == 1:
        return x, fields
    rows = [each.expand(times, *each.shape).flatten(0, 1) for each in (x, *fields.values())]
    return rows[0], dict(zip(fields, rows[1:], strict=True))


def trace_model(
    model: Program, drawn: poutine.Trace, x: Tensor, fields: Fields, at: Geometry
) -> poutine.Trace:
    """The model at the guide's draws, and at all values of the sites that are summed out."""
    left = at.particle_dim - 1 - len(at.enumerated)  # of the guide's own values
    return plain_draw(enumerated(poutine.replay(model, trace=drawn), at.summed, left), x, fields)


def _on_rows(drawn: poutine.Trace, num_particles: int, at: Geometry) -> poutine.Trace:
    """Draws under the particles' plate as those of a guide on K·B rows: the particles are merged
    into each data plate.
    """
    rows = drawn.copy()
    for name, node in drawn.nodes.items():
        if site_is_subsample(
            node
        ):  # a replayed plate of another size must not find the first one's
            rows.remove_node(name)
    for name, node in sample_nodes(drawn):
        value, dim = node["value"], at.frame(node).dim
        lead = (
            value.dim() - node["fn"].event_dim
        )  # the particles come first, the data plate at lead + dim
        batch = list(value.shape[1:lead])
        batch[dim] *= num_particles
        own = max(
            -f.dim for f in node["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE
        )
        if lead + dim > 1:
            value = value.movedim(0, lead + dim - 1)
        rows.nodes[name] = {**node, "value": value.reshape(*batch[-own:], *value.shape[lead:])}
    return rows


def _sites(
    nodes: Mapping[str, Any], size: SiteTerms, at: Geometry, particle_dim: int | None
) -> dict[str, Site]:
    return {name: _read(node, size, at, particle_dim) for name, node in nodes.items()}


def _split(
    sites: dict[str, Site], nodes: Mapping[str, Any]
) -> tuple[dict[str, Site], dict[str, Site]]:
    """The observed ones, and the latent ones."""
    observed = {name: site for name, site in sites.items() if nodes[name]["is_observed"]}
    return observed, {name: site for name, site in sites.items() if name not in observed}


def posterior_weights(trace: poutine.Trace, batch_size: int, at: Geometry) -> Tensor:
    """p(c | x, z) of the sites c that are summed out, at one draw an image: ``(*values, B)``,
    summing to 1 over the values.
    """
    sites = _sites(dict(sample_nodes(trace)), SiteTerms(1, batch_size, 1.0), at, None).values()
    joint: Any = sum(site.log_prob for site in sites if site.log_prob.dim() > 2)
    return joint.flatten(0, -3).softmax(0).reshape(joint.shape)[..., 0, :]


def _sum_out(sites: dict[str, Site], size: SiteTerms, at: Geometry) -> dict[str, Site]:
    """The sites that remain, each given those before it alone."""
    mixed = [name for name, site in sites.items() if site.log_prob.dim() > 2]
    for name in mixed[
        1:
    ]:  # what is summed together is scaled together, or not at all: Σ_c is taken before a scale
        if not same_scale(sites[name].scale, sites[mixed[0]].scale):
            raise UserError(
                f"sites {mixed[0]!r} and {name!r} of the model are scaled by "
                f"{scale_words(sites[mixed[0]].scale)} and {scale_words(sites[name].scale)}, "
                f"but {', '.join(sorted(at.summed))} is summed out of both: give both the same "
                "scale, or sample it in the guide"
            )
    left = conditionals({name: site.log_prob for name, site in sites.items()}, at.summed)
    return {
        name: replace(
            sites[name],
            log_prob=log_prob.expand(
                size.num_particles * prod(at.enumerated.values()), size.batch_size
            ),
            mixed=name in mixed,
            score_term=None,
        )
        for name, log_prob in left.items()
    }


def _read(
    node: Any, size: SiteTerms, at: Geometry, particle_dim: int | None, *, values: bool = False
) -> Site:
    """A site's density; ``values`` where it is run at all of them, and each has a share."""
    fn, value, mask, frame = node["fn"], node["value"], node["mask"], at.frame(node)
    dim = frame.dim
    if "unscaled_log_prob" in node:  # scored as it was drawn
        log_prob = node["unscaled_log_prob"]
    elif node["args"] or node["kwargs"]:
        log_prob = log_prob_of(node)
    else:
        log_prob = at.score(fn, value)
    log_prob = on_particles(masked(log_prob, mask), size, dim, particle_dim, at)
    score = None if node["is_observed"] or fn.has_rsample or values else log_prob
    scale = _scale(node, size, dim, particle_dim, at)
    return Site(
        log_prob,
        scale,
        value,
        fn,
        mask,
        score,
        dim,
        frame.name,
        particle_dim=particle_dim,
        log_share=log_prob if values else None,
    )


def on_particles(
    log_prob: Tensor, size: SiteTerms, dim: int, particle_dim: int | None, at: Geometry
) -> Tensor:
    """`per_image` of a site's log density, the values of the enumerated sites being particles:
    value by value all of its draws.
    """
    # dimensions left of all plates are those of values
    num_values = log_prob.dim() + at.particle_dim if at.summed or at.enumerated else 0
    log_prob = per_image(log_prob, size, dim, particle_dim, max(num_values, 0))
    if not at.enumerated:
        return log_prob
    values = (*reversed(list(at.enumerated.values())), size.num_particles, size.batch_size)
    shape = torch.broadcast_shapes(log_prob.shape, values)
    return log_prob.expand(shape).flatten(-len(values), -2)


def _scale(
    node: Any, size: SiteTerms, dim: int, particle_dim: int | None, at: Geometry
) -> float | Tensor:
    """A site's scale: a number, or a weight for each image."""
    scale = node["scale"]
    if not isinstance(scale, Tensor):
        return float(scale)
    if scale.numel() == 1:
        return scale.reshape(())
    if any(scale.shape[d] > 1 for d in range(-scale.dim(), 0) if d not in (dim, particle_dim)):
        raise UserError(
            f"site {node['name']!r} is scaled by a tensor of shape {tuple(scale.shape)}: "
            "expected one scale for each image, in the dimension of its plate"
        )
    return on_particles(scale, size, dim, particle_dim, at)


def masked(log_prob: Tensor, mask: Tensor | bool | None) -> Tensor:
    """``log_prob`` where the site's mask holds, 0 elsewhere."""
    if mask is None or mask is True:
        return log_prob
    if mask is False:
        return torch.zeros_like(log_prob)
    return torch.where(mask, log_prob, log_prob.new_zeros(()))


def masks_of(node: Any) -> list[tuple[Tensor | bool, int]]:
    """The masks of a site, of its handlers and of its distribution, and how many event dimensions
    follow each one's own.
    """
    fn = node["fn"]
    masks = [(True if node["mask"] is None else node["mask"], fn.event_dim)]
    while isinstance(fn, Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    return masks


def per_image(
    log_prob: Tensor, size: SiteTerms, data_dim: int, particle_dim: int | None, num_values: int = 0
) -> Tensor:
    """Sum a site's log density over all dimensions but the particles' and the data plate's: ``(K,
    B)``.

    For each value of the sites that are summed out, whose ``num_values`` dimensions are in front:
    ``(*values, K or 1, B or 1)``.
    """
    shape = size.num_particles, size.batch_size
    if log_prob.shape == shape and particle_dim == data_dim - 1:
        return log_prob
    other = [
        dim for dim in range(num_values - log_prob.dim(), 0) if dim not in (data_dim, particle_dim)
    ]
    log_prob = log_prob.sum(other) if other else log_prob
    if num_values:
        rows = log_prob.shape[-1]
        return (
            log_prob
            if particle_dim
            else log_prob.unflatten(-1, (size.num_particles if rows > 1 else 1, -1))
        )
    if particle_dim is None and log_prob.numel() == size.num_particles * size.batch_size:
        return log_prob.reshape(shape)
    return log_prob.expand(shape)


def like_value(weights: Tensor, site: Site, at: Geometry) -> Tensor:
    """``weights``, ``(K, B)``, in a shape that multiplies the values of a guide's site, in
    whichever layout they were drawn.
    """
    num_particles, batch_size = weights.shape
    shape = [1] * site.value.dim()
    image = site.value.dim() - site.fn.event_dim + site.dim
    shape[image] = site.value.shape[image]
    if shape[image] == batch_size and num_particles > 1:  # else images are repeated: K·B rows
        shape[image + at.particle_dim - site.dim] = num_particles
    return weights.reshape(shape)


def _rows_first(value: Tensor, fn: Any, data_dim: int) -> Tensor:
    return value.movedim(len(fn.batch_shape) + data_dim, 0)


def plate_size(node: Any, frame: Any) -> int:
    """A plate's size; where it has none (``pyro.plate("data")`` is of −1), that of its site there."""
    batch = node["fn"].batch_shape
    return int(
        frame.size if frame.size >= 0 else batch[frame.dim] if len(batch) >= -frame.dim else 1
    )


def sample_nodes(trace: poutine.Trace) -> list[tuple[str, Any]]:
    """The trace's true sample sites: neither a plate's subsample nor a ``pyro.deterministic``."""
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic", False)
    ]


def latent_nodes(trace: poutine.Trace) -> dict[str, Any]:
    """The sites that are drawn, by name."""
    return {name: node for name, node in sample_nodes(trace) if not node["is_observed"]}
