"""The dry run: a pair is run on a few images before anything else, and a bad one is refused in a
sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.pair import every_value, rescoring
from pyro_vae.pair.kl import analytic_kl
from pyro_vae.pair.nodes import (
    ONE_KIND,
    Fields,
    is_discrete,
    is_point_mass,
    latent_nodes,
    log_prob_of,
    plate_size,
    sample_nodes,
    two_kinds,
)
from pyro_vae.pair.observed_support import check_support
from pyro_vae.pair.structure import Geometry, Structure
from pyro_vae.pair.trial import Nodes, Traces, check_latents, of_batches, shapes_of, trace_pair
from pyro_vae.pair.unscored import Unscored, unscored
from pyro_vae.protocols import hook

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair


def understand(
    pair: Pair,
    probe: Callable[[int], tuple[Tensor, Fields]],
    whole: int = 0,
) -> Structure:
    """The structure that dry runs on 5 and on 4 images agree upon, or, where they fail,
    that of a ``whole`` set of so many; a ``UserError`` where they show a mistake.
    """
    batches = probe(5), probe(4), probe(5)
    try:
        runs = trace_pair(pair, *batches[0]), trace_pair(pair, *batches[1])
    except UserError as error:
        if whole:
            pair.store.forget_new()
            run = trace_pair(pair, *probe(whole))
            why = f"the programs take all {whole} rows of x at once, so one row has no log p(x)"
            return _read_structure(pair, run, run, f"{why}. On a few: {error}")
        told = isinstance(error.__cause__, UserError | None) or "subsample_size" in str(error)
        if told or not (why := of_batches(pair, probe)):
            raise
        raise UserError(f"{why}{error}") from error
    structure = _read_structure(pair, *runs)
    structure = every_value.at_every_value(pair, lambda: probe(5), structure)
    structure = replace(structure, **rescoring.probe(pair, *batches[2]))
    # a tensor's version counts the writes into it; one made in inference mode has none
    if any(
        t.is_inference() or t._version > 0 for x, fields in batches for t in (x, *fields.values())
    ):
        at, why = replace(structure.geometry, in_place=True), "a program writes into its batch"
        return replace(structure, geometry=at, not_held=f"{why} (as by x.mul_)")
    return structure


def _read_structure(pair: Pair, large: Traces, small: Traces, at_once: str = "") -> Structure:
    num_images = len(large[2])
    model, whole_guide = (dict(sample_nodes(trace)) for trace in large[:2])
    _check_names(pair, model, whole_guide)
    terms = [repr(name) for name, node in whole_guide.items() if node["is_observed"]]
    guide, few = latent_nodes(large[1]), (dict(sample_nodes(small[0])), latent_nodes(small[1]))
    found = unscored(model, guide, few, num_images)
    if at_once:
        found = Unscored(at_once, loose=frozenset((*model, *guide)))
    model_plates, guide_plates = (
        _data_plates(role, sites, at_four, num_images, found.loose)
        for role, sites, at_four in zip(("model", "guide"), (model, guide), few, strict=True)
    )
    check_latents(model, guide, model_plates, guide_plates)
    for name, node in model.items():
        _check_node(node, guide.get(name), num_images)
    summed = every_value.summed_out(model, guide, model_plates)
    latents = tuple(
        name for name, node in model.items() if not node["is_observed"] and name not in summed
    )
    analytic, sampled = analytic_kl(model, guide, latents)
    asked, enumerated = every_value.of_guide(guide, guide_plates)
    frames = [*model_plates.values(), *guide_plates.values()]
    nodes = (*model.values(), *guide.values())
    dims = [f.dim for node in nodes for f in node["cond_indep_stack"] if f.vectorized]
    # of x and z: a factor may be in a plate of its own
    own = [
        {
            p[n].name: None
            for n, node in sites.items()
            if n in p and not isinstance(node["fn"], dist.Unit)
        }
        for sites, p in ((model, model_plates), (guide, guide_plates))
    ]
    return Structure(
        observed=tuple(name for name, node in model.items() if node["is_observed"]),
        latents=latents,
        geometry=Geometry(
            frozenset(f.name for f in frames), min(dims, default=-1) - 1, summed=tuple(summed)
        ),
        plates=(" and ".join(own[0]), " and ".join(own[1] or own[0])),
        analytic=analytic,
        sampled=sampled,
        not_reparameterized=tuple(n for n, node in guide.items() if not node["fn"].has_rsample),
        point_masses=tuple(n for n, node in guide.items() if is_point_mass(node)),
        asked=asked,
        enumerated=enumerated,
        subsampling=any(f.full_size not in (None, f.size) for f in frames),
        summed=summed,
        by_pyro=found.why or (f"the guide observes {', '.join(terms)}" if terms else ""),
        unscored=found.why,
        shared=found.shared,
    )


def _data_plates(
    role: str, sites: Nodes, at_four: Nodes, num_images: int, loose: Collection[str]
) -> dict[str, Any]:
    """The data plate of each site: the one of its frames whose size follows the number of images, 5
    at five, 4 at four. Sites that are ``loose`` have none.
    """
    found = {}
    for name, node in sites.items():
        if name in loose:
            continue
        fewer: Any = at_four.get(name, node)
        then = {f.name: plate_size(fewer, f) for f in fewer["cond_indep_stack"]}
        plates = [f for f in node["cond_indep_stack"] if f.vectorized]
        data = [
            f
            for f in plates
            if (plate_size(node, f), then.get(f.name)) == (num_images, num_images - 1)
        ]
        if not data:
            those = (
                ", ".join(f"{f.name!r} of {f.size}" for f in node["cond_indep_stack"]) or "no plate"
            )
            one = any(f.size < 0 for f in plates) and not node["is_observed"]
            lead = "all images share one value, because that plate has no size: " * one
            raise UserError(
                f"site {name!r} of the {role} is outside the data plate (for {num_images} "
                f"images it is in {those}; its batch shape is {tuple(node['fn'].batch_shape)}): "
                f"{lead}sample it inside `with pyro.plate('data', x.shape[0]):`"
            )
        if len(data) > 1:
            both = " and ".join(f"{f.name!r} at dimension {f.dim}" for f in data)
            raise UserError(
                f"site {name!r} of the {role} is in two data plates, {both}. They combine every "
                "image with every other, so log p(x) of one image is not defined: sample the "
                "site inside one of them"
            )
        found[name] = data[0]
        _check_dims(role, node, data[0], num_images)
    return found


def _check_dims(role: str, node: Any, data: Any, num_images: int) -> None:
    """A ``UserError`` where a batch dimension of a site is that of no plate."""
    plates = {f.dim: f for f in node["cond_indep_stack"] if f.vectorized}
    shape = node["fn"].batch_shape
    for dim, size in zip(range(-len(shape), 0), shape, strict=True):
        plate = plates.get(dim)
        if size != (1 if plate is None else plate_size(node, plate)):
            of = (
                "there is no plate" if plate is None else f"plate {plate.name!r} of {plate.size} is"
            )
            raise UserError(
                f"{shapes_of(role, node)}; at dimension {dim}, of size {size}, {of} "
                f"(data plate: {data.name!r} at dimension {data.dim}, {num_images} "
                "images). Dimensions of one image must be event dimensions: write "
                "`.to_event(n)`, or put a plate there"
            )


def _check_names(pair: Pair, model: Nodes, guide: Nodes) -> None:
    owner = pair.model.owner
    named = ", ".join(hook(owner, "fitting_guides"))
    fitting = f"; guides that fit {type(owner).__name__}: {named}" if named else ""
    latents = [name for name, node in model.items() if not node["is_observed"]]
    if not model:
        raise UserError(
            "the model has no pyro.sample statement (a network alone is no Pyro program): sample "
            "z in it from a prior, and what it makes of z with obs=x"
        )
    if len(latents) == len(model):
        swapped = any(node["is_observed"] for node in guide.values())
        raise UserError(
            "the model observes nothing, but the guide does: were the two swapped? The model "
            "comes first, fit(model, guide, x)"
            if swapped
            else "the model observes nothing: give one of its sample statements `obs=x`"
        )
    for name, node in guide.items():
        if node["is_observed"] or node["infer"].get("is_auxiliary"):
            continue
        if name in model and name not in latents:
            raise UserError(
                f"site {name!r} is sampled by the guide and observed by the model: expected one "
                "of the two"
            )
        if name not in model:
            hint = (
                did_you_mean("site", name, latents)
                if latents
                else f"the model has no latent site {name!r}"
            )
            raise UserError(
                f"the guide samples site {name!r}, which is not in the model: give a latent "
                f"site the same name in both ({hint}){fitting}"
            )
    for name in latents:
        if name not in guide and not is_discrete(model[name]):
            none = "none, as it has no pyro.sample statement (a network alone is no Pyro program)"
            raise UserError(
                f"the model's latent site {name!r} is missing in the guide, whose sites are "
                f"{', '.join(guide) or none} (Pyro would draw it from its prior without a "
                f"message): sample {name!r} in the guide, or sum it out in the model{fitting}"
            )


def _check_node(node: Any, drawn: Any, num_images: int) -> None:
    """`_check_values`; where the guide's law is of another kind, that is the reason."""
    try:
        _check_values(node, num_images)
    except UserError:
        if drawn is not None and (kinds := two_kinds(node, drawn)):
            words = f"latent site {node['name']!r} is {kinds}: {ONE_KIND}"
            raise UserError(words) from None
        raise


def _check_values(node: Any, num_images: int) -> None:
    """Check what the model observes, or the guide drew, against the model's distribution."""
    fn, value, name = node["fn"], node["value"], node["name"]
    split = max(value.dim() - fn.event_dim, 0)
    batch, event = value.shape[:split], value.shape[split:]
    # a law of sequences of any length, such as DiscreteHMM, says 1 for it
    same = event == fn.event_shape or (
        not isinstance(fn, dist.Independent) and _fits(fn.event_shape, event)
    )
    if not same or not _fits(batch, fn.batch_shape):
        raise UserError(
            f"{shapes_of('model', node)}, but its value has shape {tuple(value.shape)} = "
            f"{tuple(batch)} + {tuple(event)} for {num_images} images: expected a distribution "
            "whose event has the shape of one image"
        )
    check_support(node)
    log_prob = log_prob_of(node)
    if log_prob.is_complex():
        raise UserError(
            f"site {name!r}: its log density is complex, but log p(x) is real: take a real part "
            "or a modulus first"
        )
    if torch.isnan(log_prob).any():
        raise UserError(
            f"site {name!r}: log_prob is NaN on the first images: look for NaN in the data or the "
            "network's output"
        )


def _fits(batch: torch.Size, plates: torch.Size) -> bool:
    """Whether values of this batch shape are in the plates, none being paired with every other."""
    try:
        return torch.broadcast_shapes(batch, plates) == plates
    except RuntimeError:
        return False
