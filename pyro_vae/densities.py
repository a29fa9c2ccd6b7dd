"""The kernel: unscaled log densities of every site, (K, B), for K draws of the guide at each of B images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.enumeration import conditionals, enumerated, refuse_scales
from pyro_vae.errors import UserError
from pyro_vae.program import Program

PARTICLE_PLATE = "_pyro_vae_particles"
Fields = Mapping[str, Tensor]


@dataclass(frozen=True)
class Site:
    """One sample site of one program: its density at the value that was drawn or observed."""

    log_prob: Tensor  # (K, B), nats, unscaled, masked, summed over all other dimensions
    scale: float  # what plates and poutine.scale multiply it by in Pyro's losses
    value: Tensor  # (K, B, *event) for a latent, as observed otherwise
    fn: TorchDistribution
    mask: Tensor | bool | None
    score_term: Tensor | None  # (K, B), log_prob again where the draw is not reparameterised, else None
    mixed: bool = False  # log_prob is a mixture over a site that is summed out, and ``fn`` its components, in front


@dataclass(frozen=True)
class SiteTerms:
    """All sites of one run of the pair, model sites in the model's order, guide sites in the guide's.

    ``observed`` holds log p(x | …), ``prior`` log p(z | …), ``guide`` log q(z | …), each by site name, in nats. A discrete
    site that the guide lacks is in none of them: the others' densities are those with that site summed out.
    """

    num_particles: int
    batch_size: int
    plate_scale: float  # full size over batch size of the data plate: 1, unless it subsamples
    observed: dict[str, Site] = field(default_factory=dict)
    prior: dict[str, Site] = field(default_factory=dict)
    guide: dict[str, Site] = field(default_factory=dict)
    model_order: tuple[str, ...] = ()

    def log_weights(self) -> Tensor:
        """log p(x, z) − log q(z | x), ``(K, B)``; a ``UserError`` where a site carries a scale (IWAE, equation 8)."""
        for role, sites in (("model", {**self.observed, **self.prior}), ("guide", self.guide)):
            for name, site in sites.items():
                if site.scale != 1.0:
                    raise UserError(
                        f"site {name!r} of the {role} is scaled by {site.scale:g} (a subsampling plate or poutine.scale), so its "
                        "log weights are not those of p(x): use pyro.plate(name, x.shape[0]) and no scale where log p(x) is made"
                    )
        model: Any = sum(site.log_prob for site in (self.prior | self.observed).values())
        weights: Tensor = model - sum(site.log_prob for site in self.guide.values())
        return weights


Score = Callable[[TorchDistribution, Tensor], Tensor]


def plain_score(fn: TorchDistribution, value: Tensor) -> Tensor:
    """``fn.log_prob(value)``: what every run but the evaluator's takes for a site's density."""
    log_prob: Tensor = fn.log_prob(value)
    return log_prob


Draw = Callable[[Program, Tensor, Fields], poutine.Trace]


def plain_draw(guide: Program, x: Tensor, fields: Fields) -> poutine.Trace:
    """The guide run once: what every run but a path derivative's takes for its draws and their densities."""
    return poutine.trace(lambda: guide(x, fields)).get_trace()


@dataclass(frozen=True)
class Geometry:
    """How to run a pair: the data plate's dimension in each program, the first free one, how the guide is run and sites scored."""

    model_dim: int = -1
    guide_dim: int = -1
    particle_dim: int = -2
    model_plate: str = "data"
    score: Score = plain_score
    draw: Draw = plain_draw
    summed: tuple[str, ...] = ()  # the model's discrete sites that the guide lacks


Runner = Callable[[Program, Program, Tensor, Fields, int, Geometry], SiteTerms]


def run_plain(model: Program, guide: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry) -> SiteTerms:
    """One draw an image: the two programs as they are, ``num_particles`` being 1."""
    return _run_with_plate(model, guide, x, fields, None, at)


def run_plate(model: Program, guide: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry) -> SiteTerms:
    """Both programs under an outer plate of K particles: the encoder runs once, on B rows."""
    return _run_with_plate(model, guide, x, fields, num_particles, at)


def run_rows(model: Program, guide: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry) -> SiteTerms:
    """The guide under the particle plate, the model replayed on K·B flattened rows."""
    with pyro.plate(PARTICLE_PLATE, num_particles, dim=at.particle_dim):
        drawn = _without_subsamples(at.draw(guide, x, fields))
    terms = _read_guide(drawn, SiteTerms(num_particles, x.shape[0], 1.0), at, at.particle_dim)
    flat = drawn.copy()
    for name in terms.guide:
        node = flat.nodes[name] = drawn.nodes[name].copy()
        event_dim = node["fn"].event_dim
        shape = node["value"].shape
        node["value"] = node["value"].reshape(num_particles * x.shape[0], *shape[len(shape) - event_dim :])
    model_trace = trace_model(model, flat, _repeat(x, num_particles), _repeat_fields(fields, num_particles), at)
    return _read_model(model_trace, terms, at, None)


def run_repeat(
    model: Program, guide: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry
) -> SiteTerms:
    """Both programs on K·B rows, each image K times: right for every pair, and the encoder runs K times."""
    rows, row_fields = _repeat(x, num_particles), _repeat_fields(fields, num_particles)
    drawn = _without_subsamples(at.draw(guide, rows, row_fields))
    terms = _read_guide(drawn, SiteTerms(num_particles, x.shape[0], 1.0), at, None)
    return _read_model(trace_model(model, drawn, rows, row_fields, at), terms, at, None)


def run_guide(guide: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry, layout: str) -> SiteTerms:
    """The guide alone: the terms hold log q(z | x)."""
    empty = SiteTerms(num_particles, x.shape[0], 1.0)
    if layout == "repeat":
        rows, row_fields = _repeat(x, num_particles), _repeat_fields(fields, num_particles)
        return _read_guide(poutine.trace(lambda: guide(rows, row_fields)).get_trace(), empty, at, None)
    with pyro.plate(PARTICLE_PLATE, num_particles, dim=at.particle_dim):
        trace = poutine.trace(lambda: guide(x, fields)).get_trace()
    return _read_guide(trace, empty, at, at.particle_dim)


def run_prior(model: Program, x: Tensor, fields: Fields, num_particles: int, at: Geometry, layout: str) -> SiteTerms:
    """The model alone, its latents drawn from their priors, which therefore cancel: the terms hold log p(x | z)."""
    at = replace(at, summed=())  # drawn as the others are
    if layout == "plate":
        with pyro.plate(PARTICLE_PLATE, num_particles, dim=at.particle_dim):
            trace = poutine.trace(lambda: model(x, fields)).get_trace()
        terms = _read_model(trace, SiteTerms(num_particles, x.shape[0], 1.0), at, at.particle_dim)
    else:
        rows, row_fields = _repeat(x, num_particles), _repeat_fields(fields, num_particles)
        trace = poutine.trace(lambda: model(rows, row_fields)).get_trace()
        terms = _read_model(trace, SiteTerms(num_particles, x.shape[0], 1.0), at, None)
    return replace(terms, prior={})


# cheapest first: a pair gets the first one whose values are those of the last
LAYOUTS: dict[str, Runner] = {"plate": run_plate, "rows": run_rows, "repeat": run_repeat}


def _run_with_plate(
    model: Program, guide: Program, x: Tensor, fields: Fields, num_particles: int | None, at: Geometry
) -> SiteTerms:
    plate: Any = nullcontext()
    if num_particles is not None:
        plate = pyro.plate(PARTICLE_PLATE, num_particles, dim=at.particle_dim)
    with plate:
        drawn = at.draw(guide, x, fields)
        model_trace = trace_model(model, drawn, x, fields, at)
    particle_dim = None if num_particles is None else at.particle_dim
    terms = _read_guide(drawn, SiteTerms(num_particles or 1, x.shape[0], 1.0), at, particle_dim)
    return _read_model(model_trace, terms, at, particle_dim)


def trace_model(model: Program, drawn: poutine.Trace, x: Tensor, fields: Fields, at: Geometry) -> poutine.Trace:
    """The model at the guide's draws, and at all values of the sites that are summed out."""
    replayed = poutine.replay(lambda: model(x, fields), trace=drawn)
    return poutine.trace(enumerated(replayed, at.summed, at.particle_dim - 1)).get_trace()


def _read_guide(trace: poutine.Trace, terms: SiteTerms, at: Geometry, particle_dim: int | None) -> SiteTerms:
    for name, node in sample_nodes(trace):
        if not node["is_observed"]:
            terms.guide[name] = _read(node, terms, at, at.guide_dim, particle_dim)
    return terms


def _read_model(trace: poutine.Trace, terms: SiteTerms, at: Geometry, particle_dim: int | None) -> SiteTerms:
    sites, plate_scale = {}, 1.0
    nodes = dict(sample_nodes(trace))
    for name, node in nodes.items():
        sites[name] = _read(node, terms, at, at.model_dim, particle_dim)
        for frame in node["cond_indep_stack"]:
            if frame.name == at.model_plate and frame.full_size is not None:
                plate_scale = frame.full_size / frame.size
    if at.summed:
        sites = _sum_out(sites, terms, at)
    for name, site in sites.items():
        (terms.observed if nodes[name]["is_observed"] else terms.prior)[name] = site
    return SiteTerms(
        terms.num_particles, terms.batch_size, plate_scale, terms.observed, terms.prior, terms.guide, tuple(sites)
    )


def posterior_weights(trace: poutine.Trace, batch_size: int, at: Geometry) -> Tensor:
    """p(c | x, z) of the sites c that are summed out, at one draw an image: ``(*values, B)``, summing to 1 over the values."""
    terms = SiteTerms(1, batch_size, 1.0)
    sites = [_read(node, terms, at, at.model_dim, None) for _, node in sample_nodes(trace)]
    joint: Any = sum(site.log_prob for site in sites if site.log_prob.dim() > 2)
    return joint.flatten(0, -3).softmax(0).reshape(joint.shape)[..., 0, :]


def _sum_out(sites: dict[str, Site], terms: SiteTerms, at: Geometry) -> dict[str, Site]:
    """The sites that remain, each given those before it alone."""
    mixed = {name: site.scale for name, site in sites.items() if site.log_prob.dim() > 2}
    refuse_scales(mixed, at.summed)
    size = (terms.num_particles, terms.batch_size)
    left = conditionals({name: site.log_prob for name, site in sites.items()}, at.summed)
    return {
        name: replace(sites[name], log_prob=log_prob.expand(size), mixed=name in mixed, score_term=None)
        for name, log_prob in left.items()
    }


def _read(node: Any, terms: SiteTerms, at: Geometry, data_dim: int, particle_dim: int | None) -> Site:
    fn, value, mask = node["fn"], node["value"], node["mask"]
    given = node["args"] or node["kwargs"]
    if "unscaled_log_prob" in node:  # scored as it was drawn
        log_prob = node["unscaled_log_prob"]
    else:
        log_prob = fn.log_prob(value, *node["args"], **node["kwargs"]) if given else at.score(fn, value)
    log_prob = masked(log_prob, mask)
    num_values = log_prob.dim() + at.particle_dim  # dimensions of sites that are summed out, left of all plates
    if at.summed and num_values > 0:
        log_prob = _per_value(log_prob, num_values, terms, data_dim, particle_dim)
    else:
        log_prob = per_image(log_prob, terms, data_dim, particle_dim)
    score = None if node["is_observed"] or fn.has_rsample else log_prob
    return Site(log_prob, float(node["scale"]), value, fn, mask, score)


def masked(log_prob: Tensor, mask: Tensor | bool | None) -> Tensor:
    """``log_prob`` where the site's mask holds, 0 elsewhere."""
    if mask is None or mask is True:
        return log_prob
    if mask is False:
        return torch.zeros_like(log_prob)
    return torch.where(mask, log_prob, log_prob.new_zeros(()))


def per_image(log_prob: Tensor, terms: SiteTerms, data_dim: int, particle_dim: int | None) -> Tensor:
    """Sum a site's log density over all dimensions but the particles' and the data plate's: ``(K, B)``."""
    num_particles, batch_size = terms.num_particles, terms.batch_size
    if log_prob.shape == (num_particles, batch_size) and particle_dim == data_dim - 1:
        return log_prob
    other = [d for d in range(-log_prob.dim(), 0) if d not in (data_dim, particle_dim)]
    if other:
        log_prob = log_prob.sum(other)
    if particle_dim is None and log_prob.numel() == num_particles * batch_size:
        return log_prob.reshape(num_particles, batch_size)
    return log_prob.expand(num_particles, batch_size)


def _per_value(log_prob: Tensor, num_values: int, terms: SiteTerms, data_dim: int, particle_dim: int | None) -> Tensor:
    """`per_image` for each value of the sites that are summed out, which lie in front: ``(*values, K or 1, B or 1)``."""
    inner = range(num_values - log_prob.dim(), 0)
    other = [d for d in inner if d not in (data_dim, particle_dim)]
    if other:
        log_prob = log_prob.sum(other)
    if particle_dim is not None:
        return log_prob
    rows = log_prob.shape[-1]
    return log_prob.unflatten(-1, (terms.num_particles if rows > 1 else 1, -1))


def like_value(weights: Tensor, site: Site, at: Geometry) -> Tensor:
    """``weights``, ``(K, B)``, in a shape that multiplies the values of a guide's site, in whichever layout they were drawn."""
    num_particles, batch_size = weights.shape
    shape = [1] * site.value.dim()
    image = site.value.dim() - site.fn.event_dim + at.guide_dim
    shape[image] = site.value.shape[image]
    if shape[image] == batch_size and num_particles > 1:  # else images are repeated: K·B rows
        shape[image + at.particle_dim - at.guide_dim] = num_particles
    return weights.reshape(shape)


def sample_nodes(trace: poutine.Trace) -> list[tuple[str, Any]]:
    """The trace's true sample sites: neither a plate's subsample nor a ``pyro.deterministic``."""
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and type(node["fn"]).__name__ != "_Subsample"
        and not node["infer"].get("_deterministic", False)
    ]


def _without_subsamples(trace: poutine.Trace) -> poutine.Trace:
    """A replayed plate of another size must not find the first one's indices."""
    kept = trace.copy()
    for name, node in list(kept.nodes.items()):
        if type(node.get("fn")).__name__ == "_Subsample":
            kept.remove_node(name)
    return kept


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.expand(times, *x.shape).reshape(times * x.shape[0], *x.shape[1:])


def _repeat_fields(fields: Fields, times: int) -> dict[str, Tensor]:
    return {name: _repeat(value, times) for name, value in fields.items()}
