"""Layouts of many draws: unscaled log densities of every site, (K, B), for K draws at each of B
images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.pair.enumeration import conditionals, enumerated
from pyro_vae.pair.nodes import (
    Call,
    Fields,
    copies,
    latent_nodes,
    log_prob_of,
    masked,
    plain_draw,
    repeated,
    sample_nodes,
)
from pyro_vae.pair.program import Program
from pyro_vae.pair.structure import Geometry
from pyro_vae.pair.terms import Site, SiteTerms, same_scale, scale_words

PARTICLE_PLATE = "_pyro_vae_particles"


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
    dim = at.particle_dim if layout == "plate" else None
    sites = {name: _read(node, size, at, dim) for name, node in nodes.items()}
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
    at, dim = replace(at, summed=()), None if on_rows else at.particle_dim
    return _split({name: _read(node, size, at, dim) for name, node in nodes.items()}, nodes)


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
    size = SiteTerms(1, batch_size, 1.0)
    sites = [_read(node, size, at, None) for _, node in sample_nodes(trace)]
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
    """Sum a site's log density over all dimensions but the particles' and the data plate's: ``(K,
    B)``.

    The values of enumerated sites are particles, value by value all of its draws. For each value of
    the sites that are summed out, whose dimensions are in front: ``(*values, K or 1, B or 1)``.
    """
    shape = size.num_particles, size.batch_size
    # dimensions left of all plates are those of values
    num_values = max(log_prob.dim() + at.particle_dim, 0) if at.summed or at.enumerated else 0
    if log_prob.shape != shape or particle_dim != dim - 1:
        own = range(num_values - log_prob.dim(), 0)
        if other := [each for each in own if each not in (dim, particle_dim)]:
            log_prob = log_prob.sum(other)
        if num_values:
            if particle_dim is None:
                draws = size.num_particles if log_prob.shape[-1] > 1 else 1
                log_prob = log_prob.unflatten(-1, (draws, -1))
        elif particle_dim is None and log_prob.numel() == size.num_particles * size.batch_size:
            log_prob = log_prob.reshape(shape)
        else:
            log_prob = log_prob.expand(shape)
    if not at.enumerated:
        return log_prob
    values = (*reversed(list(at.enumerated.values())), *shape)
    whole = torch.broadcast_shapes(log_prob.shape, values)
    return log_prob.expand(whole).flatten(-len(values), -2)


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
