"""The dry run read aloud: what a pair is, or one sentence on why it can't be one, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from pyro_vae import gaussian_kl  # noqa: F401  # registers closed forms
from pyro_vae.densities import Fields, Geometry, sample_nodes, trace_model
from pyro_vae.enumeration import num_values
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.program import Program, validation
from pyro_vae.structure import Structure

if TYPE_CHECKING:
    from pyro_vae.pair import Pair

Traces = tuple[poutine.Trace, poutine.Trace, Tensor]


def refuse_autoguide(guide: Callable[..., Any]) -> None:
    """AutoGuides hold one set of parameters for the data plate that they first saw."""
    if isinstance(guide, AutoGuide):
        raise UserError(
            f"{type(guide).__name__} is not amortized: an AutoGuide over the data plate has parameters for the images of its "
            "first batch alone; use a guide that computes q(z | x) from x, such as pyro_vae.guides.MeanField"
        )


def trace_pair(pair: Pair, x: Tensor, fields: Fields) -> Traces:
    """Guide and model traced once on the images ``x``; whatever a program raises becomes one sentence."""
    with validation(distributions=True):
        drawn = _trace(pair, pair.guide, x, lambda: pair.guide(x, fields))
        _refuse_nan_draws(drawn)
        try:
            model = _trace(pair, pair.model, x, poutine.replay(lambda: pair.model(x, fields), trace=drawn))
        except UserError:
            _check_event_shapes(_trace(pair, pair.model, x, lambda: pair.model(x, fields)), drawn)
            raise
    return model, drawn, x


@contextmanager
def one_sentence() -> Iterator[None]:
    """Inside, a ``UserError`` that a program raises keeps its first line: Pyro appends its table of shapes to any message."""
    try:
        yield
    except UserError as error:
        sentence, _, rest = str(error).partition("\n")
        if rest.lstrip().startswith("Trace Shapes"):
            raise UserError(sentence) from error
        raise


def _trace(pair: Pair, program: Program, x: Tensor, call: Callable[[], Any]) -> poutine.Trace:
    pair.store.seen.clear()
    try:
        trace = poutine.trace(call).get_trace()
    except UserError as error:  # Pyro appends its table of shapes to any message
        raise UserError(f"the {program.role}: {str(error).splitlines()[0]}") from error
    except Exception as error:
        raise UserError(_why_it_failed(program, x, error)) from error
    pair.note_parameters(program)
    return trace


def _refuse_nan_draws(drawn: poutine.Trace) -> None:
    for name, node in sample_nodes(drawn):
        if bool(torch.isnan(node["value"]).any()):
            raise UserError(
                f"site {name!r} of the guide draws NaN on the first images: look for NaN in the network's output, which "
                "validate_args=False hides"
            )


def refuse_broken_parameters(pair: Pair) -> None:
    """Where a dry run fails, a parameter that is not finite explains more than what it led to."""
    named = [
        (f"{name!r} of the {program.role}", parameter)
        for program in (pair.model, pair.guide)
        for name, parameter in (program.owner.named_parameters() if program.owner is not None else ())
    ]
    named += [(f"{n!r} of {type(m).__name__}", p) for m in pair.modules for n, p in m.named_parameters(recurse=False)]
    named += [(repr(name), parameter) for name, parameter in pair.store.parameters.items()]
    for name, parameter in named:
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(
                f"parameter {name} holds a NaN or an infinity, as after a training that diverged: build the networks afresh"
            )


def _why_it_failed(program: Program, x: Tensor, error: Exception) -> str:
    """Pyro's own words say which dimensions differ; ours say which site, whose shapes, and what to change."""
    site = _site_of(error)
    where = f"the {program.role} failed on {len(x)} images of shape {tuple(x.shape[1:])}"
    first_line, *others = (str(error).strip() or repr(error)).splitlines()
    if first_line.endswith("found invalid values:"):  # torch prints the tensor below
        first_line = first_line[:-1] + (" (NaN)" if any("nan" in line for line in others) else "")
    if site is not None and "Shape mismatch inside plate" in str(error):
        plate = first_line.split("plate(")[1].split(")")[0].strip("'\"")
        fn = site["fn"]
        extra = len(fn.batch_shape) - 1
        return (
            f"site {site['name']!r} of the {program.role} has batch shape {tuple(fn.batch_shape)} and event shape "
            f"{tuple(fn.event_shape)}, which don't fit plate {plate!r} of {len(x)} images: the dimensions that belong to one "
            f"image are its event, so write `.to_event({max(extra, 1)})` on its distribution"
        )
    if site is not None:
        return f"{where}, at site {site['name']!r}: {type(error).__name__}: {first_line}"
    return f"{where}: {type(error).__name__}: {first_line}"


def _site_of(error: Exception) -> Any | None:
    """The sample statement under way when Pyro raised, from the frames of the traceback."""
    frames, found = error.__traceback__, None
    while frames is not None:
        message = frames.tb_frame.f_locals.get("msg")
        if isinstance(message, dict) and message.get("type") == "sample" and hasattr(message.get("fn"), "batch_shape"):
            found = message
        frames = frames.tb_next
    return found


def read_structure(pair: Pair, large: Traces, small: Traces) -> Structure:
    """The structure that two dry runs, on 5 and on 4 images, agree upon; a ``UserError`` where they show a mistake."""
    model, guide, x = large
    model_sites, guide_sites = dict(sample_nodes(model)), dict(sample_nodes(guide))
    names_at_four = {n for n, _ in sample_nodes(small[0])} | {n for n, _ in sample_nodes(small[1])}
    _check_names(model_sites, guide_sites, names_at_four, _fitting(pair))
    sizes = {"model": _plate_sizes(small[0]), "guide": _plate_sizes(small[1])}
    plates = {}
    for role, sites in (("model", model_sites), ("guide", guide_sites)):
        for name, node in sites.items():
            frame = _data_frame(role, name, node, len(x), sizes[role])
            _check_shapes(role, name, node, frame, len(x))
            plates[role] = frame
    _check_event_shapes(model, guide)
    for name, node in model_sites.items():
        _check_values(name, node, len(x))
    summed = _summed_out(model_sites, guide_sites, plates["model"])
    latents = tuple(name for name, node in model_sites.items() if not node["is_observed"] and name not in summed)
    analytic, sampled = _analytic_kl(model_sites, guide_sites, latents)
    model_frame = plates["model"]
    guide_frame = plates.get("guide", model_frame)
    depth = max(
        -f.dim for t in (model, guide) for _, n in sample_nodes(t) for f in n["cond_indep_stack"] if f.vectorized
    )
    return Structure(
        observed=tuple(name for name, node in model_sites.items() if node["is_observed"]),
        latents=latents,
        geometry=Geometry(model_frame.dim, guide_frame.dim, -depth - 1, model_frame.name, summed=tuple(summed)),
        plates=(model_frame.name, guide_frame.name),
        analytic=analytic,
        sampled=sampled,
        not_reparameterized=tuple(n for n, node in guide_sites.items() if not node["fn"].has_rsample),
        point_masses=tuple(n for n, node in guide_sites.items() if _is_point_mass(node["fn"])),
        subsampling=any(f.full_size not in (None, f.size) for f in (model_frame, guide_frame)),
        summed=summed,
    )


def _summed_out(model_sites: dict[str, Any], guide_sites: dict[str, Any], data_frame: Any) -> dict[str, int]:
    """The discrete sites that the guide lacks, and how many values each has."""
    found = {}
    for name, node in model_sites.items():
        if node["is_observed"] or name in guide_sites:
            continue
        found[name] = num_values(node)
        for frame in node["cond_indep_stack"]:
            if frame.name != data_frame.name:
                raise UserError(
                    f"site {name!r} is missing in the guide and stands in plate {frame.name!r} as well as in the data plate: a "
                    "site is summed out where each image has one; sample it in the guide, or write a site for each of its parts"
                )
    return found


def check_enumeration(pair: Pair, x: Tensor, fields: Fields, structure: Structure) -> Structure:
    """The structure once the model has run at all values of the sites that are summed out.

    A latent that depends on one has a mixture for its prior, and no closed-form KL. A ``UserError`` where the model can't run
    so.
    """
    at, names = structure.geometry, ", ".join(map(repr, structure.summed))
    with validation(distributions=True):
        drawn = poutine.trace(lambda: pair.guide(x, fields)).get_trace()
        try:
            nodes = dict(sample_nodes(trace_model(pair.model, drawn, x, fields, at)))
            shapes = {name: node["fn"].log_prob(node["value"]).shape for name, node in nodes.items()}
        except Exception as error:
            site = _site_of(error)
            where = f" at site {site['name']!r}" if site is not None else ""
            raise UserError(
                f"the model fails{where} with all values of {names} at once, which are summed out as the guide lacks them: "
                f"{_first_line(error)}: write it for values of shape (values, 1, …), by torch.broadcast_tensors before torch.cat, "
                "or sample them in the guide"
            ) from error
    dims = [nodes[name]["infer"]["_enumerate_dim"] for name in structure.summed]
    if len(set(dims)) < len(dims):
        raise UserError(
            f"{names} share dimensions in a pyro.markov: leave it out, as all their values are summed over at once"
        )
    mixed = [name for name in structure.latents if len(shapes[name]) > -at.particle_dim]
    return replace(
        structure,
        analytic=tuple(name for name in structure.analytic if name not in mixed),
        sampled={
            **structure.sampled,
            **dict.fromkeys(mixed, f"its prior is a mixture over {names}, which is summed out"),
        },
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"


def _fitting(pair: Pair) -> str:
    """The guides that the model names as its own, in words."""
    guides = getattr(pair.model.owner, "fitting_guides", ())
    return f"; guides that fit {type(pair.model.owner).__name__}: {', '.join(guides)}" if guides else ""


def _check_names(
    model_sites: dict[str, Any], guide_sites: dict[str, Any], names_at_four: set[str], fitting: str
) -> None:
    latents = [name for name, node in model_sites.items() if not node["is_observed"]]
    observed = [name for name, node in model_sites.items() if node["is_observed"]]
    if changed := (model_sites.keys() | guide_sites.keys()) ^ names_at_four:
        raise UserError(
            f"the sites change with the number of images ({', '.join(sorted(changed)[:3])} …), as in `for i in pyro.plate(…)`: "
            "use one vectorised plate, `with pyro.plate('data', x.shape[0]):`"
        )
    if not observed:
        raise UserError("the model observes nothing: give one of its sample statements `obs=x`")
    for name in guide_sites:
        if name not in model_sites:
            hint = did_you_mean("site", name, latents) if latents else f"the model has no latent site {name!r}"
            raise UserError(
                f"the guide samples site {name!r}, which the model lacks: name latent sites alike in both ({hint}){fitting}"
            )
        if name in observed:
            raise UserError(
                f"site {name!r} is sampled by the guide and observed by the model: it must be one or the other"
            )
    for name in latents:
        if name not in guide_sites and not model_sites[name]["fn"].support.is_discrete:
            raise UserError(
                f"the model's latent site {name!r} is missing in the guide, whose sites are "
                f"{', '.join(guide_sites) or 'none'} (Pyro would draw it from its prior in silence): sample {name!r} in the "
                f"guide, or sum it out in the model{fitting}"
            )


def _plate_sizes(trace: poutine.Trace) -> dict[tuple[str, str], int]:
    return {(name, f.name): f.size for name, node in sample_nodes(trace) for f in node["cond_indep_stack"]}


def _data_frame(role: str, name: str, node: Any, batch_size: int, sizes_at_four: dict[tuple[str, str], int]) -> Any:
    """The plate whose size is the number of images: 5 at five, 4 at four."""
    for frame in node["cond_indep_stack"]:
        if frame.size == batch_size and sizes_at_four.get((name, frame.name)) == batch_size - 1 and frame.vectorized:
            return frame
    plates = ", ".join(f"{f.name!r} of {f.size}" for f in node["cond_indep_stack"]) or "no plate"
    raise UserError(
        f"site {name!r} of the {role} stands outside the data plate (for {batch_size} images it stands in {plates}; its batch "
        f"shape is {tuple(node['fn'].batch_shape)}): sample it inside `with pyro.plate('data', x.shape[0]):`"
    )


def _check_shapes(role: str, name: str, node: Any, data_frame: Any, batch_size: int) -> None:
    fn, plates = node["fn"], {f.dim: f for f in node["cond_indep_stack"] if f.vectorized}
    for dim in range(-len(fn.batch_shape), 0):
        size, plate = fn.batch_shape[dim], plates.get(dim)
        if (plate is None and size != 1) or (plate is not None and size != plate.size):
            stands = f"plate {plate.name!r} of {plate.size} stands" if plate is not None else "no plate stands"
            raise UserError(
                f"site {name!r} of the {role} has batch shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}; at "
                f"dimension {dim}, of size {size}, {stands} (data plate: {data_frame.name!r}, {batch_size} images): dimensions of "
                "one image are its event, so write `.to_event(n)` for them, or put a plate there"
            )


def _check_event_shapes(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Latents whose one-image shape differs between the two programs."""
    in_guide = dict(sample_nodes(guide))
    for name, node in sample_nodes(model):
        if name in in_guide and in_guide[name]["fn"].event_shape != node["fn"].event_shape:
            raise UserError(
                f"latent site {name!r} has event shape {tuple(node['fn'].event_shape)} in the model and "
                f"{tuple(in_guide[name]['fn'].event_shape)} in the guide: build both with the same latent dimension"
            )


def _check_values(name: str, model_node: Any, batch_size: int) -> None:
    fn, value = model_node["fn"], model_node["value"]
    split = value.dim() - fn.event_dim
    batch, event = value.shape[: max(split, 0)], value.shape[max(split, 0) :]
    if event != fn.event_shape or not _fits(batch, fn.batch_shape):
        raise UserError(
            f"site {name!r} of the model has batch shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}, but its "
            f"value has shape {tuple(value.shape)} = {tuple(batch)} + {tuple(event)} for {batch_size} images: give the "
            "distribution's event and the value the shape of one image"
        )
    check_support(name, fn, value)
    log_prob = fn.log_prob(value)
    if torch.isnan(log_prob).any():
        raise UserError(
            f"site {name!r}: log_prob is NaN on the first images: look for NaN in the data or the network's output"
        )


def _fits(batch: torch.Size, plates: torch.Size) -> bool:
    """Whether values of this batch shape lie in the plates, none being paired with every other."""
    try:
        return torch.broadcast_shapes(batch, plates) == plates
    except RuntimeError:
        return False


def check_support(name: str, fn: Any, value: Tensor) -> None:
    """A ``UserError`` naming the first value outside the support, which ``validate_args=False`` would hide."""
    try:
        inside = fn.support.check(value)
    except RuntimeError:  # a support whose bounds are tensors of the dry run's five images
        return
    if bool(inside.all()):
        return
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    elementwise = base.support.check(value)
    bad = value[~elementwise] if elementwise.shape == value.shape else value[~inside]
    remedy = _REMEDIES.get(type(base.support), "choose a likelihood whose support holds the data")
    law = type(base).__name__.lstrip("_")
    raise UserError(f"site {name!r}: the value {bad.flatten()[0].item():g} is outside the support of {law}: {remedy}")


_REAL = "choose a likelihood of real values such as Gaussian"
_REMEDIES = {
    type(constraints.boolean): f"binarize the images (binarize='dynamic', --binarize dynamic), or {_REAL}",
    type(constraints.unit_interval): f"scale the images to [0, 1], or {_REAL}",
    constraints.integer_interval: (
        "give the grey levels as they are stored, whole numbers from 0, and build the likelihood with as many levels=…"
    ),
    type(constraints.nonnegative_integer): "give the grey levels as they are stored, whole numbers from 0",
}
"""What to do about a value outside, by the support."""


def check_fields(pair: Pair, fields: Fields) -> None:
    """What a program itself has to say against the named fields of all images: its method ``check_fields(fields)``."""
    for program in (pair.model, pair.guide):
        check = getattr(program.owner, "check_fields", None)
        if check is not None:
            check(fields)


def check_all_support(pair: Pair, x: Tensor, fields: Fields) -> None:
    """The support of every observed site at all images, not only at the dry run's.

    Where the model observes x itself, perhaps reshaped, one look at x suffices; else the model runs once on all images.
    """
    check_fields(pair, fields)
    few = {name: value[:5] for name, value in fields.items()}
    with pair.probing():
        nodes = sample_nodes(trace_pair(pair, x[:5], few)[0])
        if all(torch.equal(n["value"].flatten(), x[:5].flatten()) for _, n in nodes if n["is_observed"]):
            for name, node in nodes:
                if node["is_observed"]:
                    check_support(name, node["fn"], x.reshape(len(x), *node["value"].shape[1:]))
            return
        for start in range(0, len(x), 500):
            rows = slice(start, start + 500)
            for name, node in sample_nodes(trace_pair(pair, x[rows], {k: v[rows] for k, v in fields.items()})[0]):
                if node["is_observed"]:
                    check_support(name, node["fn"], node["value"])


def _is_point_mass(fn: Any) -> bool:
    while not isinstance(fn, dist.Delta):
        if not hasattr(fn, "base_dist"):
            return False
        fn = fn.base_dist
    return True


def _analytic_kl(
    model_sites: dict[str, Any], guide_sites: dict[str, Any], latents: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The rule by site: all latents before it in the model come before it in the guide, and a closed form exists.

    Then the model's conditional at this site is a function of values that the guide has drawn already, and the inner
    expectation of the ELBO at this site is the KL divergence itself.
    """
    analytic, sampled, guide_order = [], {}, list(guide_sites)
    for position, name in enumerate(latents):
        before = guide_order[: guide_order.index(name)]
        if late := [other for other in latents[:position] if other not in before]:
            sampled[name] = f"the guide samples {late[0]!r} after it, the model before it"
            continue
        try:
            kl_divergence(guide_sites[name]["fn"], model_sites[name]["fn"])
            analytic.append(name)
        except NotImplementedError:
            sampled[name] = "no closed form is registered for its two distributions"
    return tuple(analytic), sampled
