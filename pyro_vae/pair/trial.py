"""Trial run of both programs on a few images; what they raise becomes one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.fields import is_constant
from pyro_vae.pair.nodes import ONE_KIND, Fields, plain_draw, sample_nodes, two_kinds
from pyro_vae.pair.program import Program, validation
from pyro_vae.tensors import one_of

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair

Traces = tuple[poutine.Trace, poutine.Trace, Tensor]
Nodes = dict[str, Any]


_OF_A_NAN = (
    "repair it or leave it out, or let the programs leave out what is missing (NaN, or False in "
    "the field mask): missing='nan' of a likelihood and a guide (--missing nan); in your own, "
    "dist.NanMaskedNormal or a mask in the model, x.nan_to_num() in the guide"
)


def refuse_autoguide(guide: Callable[..., Any]) -> None:
    """AutoGuides hold one set of parameters for the data plate that they first saw."""
    if isinstance(guide, AutoGuide):
        raise UserError(
            f"{type(guide).__name__} is not amortized: an AutoGuide over the data plate has "
            "parameters only for the images of its first batch. Use a guide that computes q(z "
            "| x) from x, such as pyro_vae.guides.MeanField"
        )


def trace_pair(pair: Pair, x: Tensor, fields: Fields, first: int = 0) -> Traces:
    """Guide and model traced once on the images ``x``, of which the first is number ``first`` of
    the set; whatever a program raises becomes one sentence.
    """
    with validation(distributions=True):
        drawn = _trace(pair, pair.guide, x, fields, first=first)
        for name, node in sample_nodes(drawn):
            if bool(torch.isnan(node["value"]).any()):
                what, bad = f"what the guide draws at {name!r}", _first_nan(x)
                raise UserError(
                    f"{what} is NaN on the first {one_of(x)}s: look for NaN in the network's output, "
                    "which validate_args=False hides"
                    if bad is None
                    else f"x: {one_of(x)} {first + bad} has a NaN, and {what} is NaN: {_OF_A_NAN}"
                )
        try:
            model = _trace(pair, pair.model, x, fields, drawn, first)
        except UserError:
            alone = dict(sample_nodes(_trace(pair, pair.model, x, fields)))
            check_latents(alone, dict(sample_nodes(drawn)))
            for name, node in sample_nodes(drawn):
                if name in alone and (kinds := two_kinds(alone[name], node)):
                    raise UserError(f"latent site {name!r} is {kinds}: {ONE_KIND}") from None
            raise
    return model, drawn, x


def _trace(
    pair: Pair,
    program: Program,
    x: Tensor,
    fields: Fields,
    drawn: poutine.Trace | None = None,
    first: int = 0,
) -> poutine.Trace:
    pair.store.seen.clear()
    try:
        trace = plain_draw(
            program if drawn is None else poutine.replay(program, trace=drawn), x, fields
        )
    except UserError as error:
        raise UserError(f"the {program.role}: {error}") from error
    except Exception as error:
        why = _of_another_batch(pair, program, x) or _why_it_failed(
            program, x, fields, error, first
        )
        raise UserError(why) from error
    pair.note_parameters(program)
    return trace


def why_not_whole(pair: Pair, x: Tensor, fields: Fields) -> str:
    """Nothing if both programs run on whole numbers as they are, and the model draws them."""
    try:
        pair.store.before = frozenset(pair.store.parameters)
        with pair.probing():
            trace_pair(pair, x, fields)[0].compute_log_prob()
            plain_draw(pair.model, x, fields)
    except Exception as error:  # whatever a program raises on numbers of another kind
        return " ".join((str(error) or repr(error)).splitlines()[:2])
    finally:
        pair.store.forget_new()
    return ""


def refuse_broken_parameters(pair: Pair) -> None:
    """Where a dry run fails, a parameter that is not finite explains more than what it led to."""
    owned = [
        (f" of the {p.role}", p.owner.named_parameters())
        for p in (pair.model, pair.guide)
        if p.owner is not None
    ]
    owned += [(f" of {type(m).__name__}", m.named_parameters(recurse=False)) for m in pair.modules]
    for of, parameters in (*owned, ("", pair.store.parameters.items())):
        for name, parameter in parameters:
            if not bool(torch.isfinite(parameter).all()):
                raise UserError(
                    f"parameter {name!r}{of} has a NaN or an infinity, such as after a training "
                    "that diverged: build the networks again"
                )


def check_latents(
    model: Nodes,
    guide: Nodes,
    model_plates: Mapping[str, Any] | None = None,
    guide_plates: Mapping[str, Any] | None = None,
) -> None:
    """Latents whose one-image shape, data plate or kind of density differs between the two
    programs.
    """
    for name, prior in model.items():
        if name not in guide:
            continue
        p, q = prior["fn"], guide[name]["fn"]
        if q.event_shape != p.event_shape:
            raise UserError(
                f"latent site {name!r} has event shape {tuple(p.event_shape)} in the model and "
                f"{tuple(q.event_shape)} in the guide: build both with the same latent dimension"
            )
        if not (model_plates and guide_plates and name in model_plates and name in guide_plates):
            continue
        if model_plates[name].dim != guide_plates[name].dim:
            of = [
                f"{f.name!r} at dimension {f.dim}" for f in (model_plates[name], guide_plates[name])
            ]
            raise UserError(
                f"latent site {name!r} is in data plate {of[0]} of the model and in {of[1]} of "
                "the guide: give both the same dimension"
            )


def _of_another_batch(pair: Pair, program: Program, x: Tensor) -> str:
    """A sentence where a parameter was made with a row for each image of the larger batch."""
    for name, parameter in pair.store.parameters.items():
        if parameter.dim() and len(parameter) == len(x) + 1 and name not in pair.store.before:
            return (
                f"pyro.param({name!r}) of the {program.role} has a row for each image (its "
                f"shape is {tuple(parameter.shape)} for {len(parameter)} images), but other "
                "batches have other images. Train it by fit(…, batch_size=None), or take the rows "
                "of one parameter by the field `index`, or use pyro_vae.guides.PerDatum"
            )
    return ""


def of_batches(pair: Pair, probe: Callable[[int], tuple[Tensor, Fields]]) -> str:
    """A sentence where programs that fail on a few images take a batch on its side."""
    x, fields = probe(5)
    with poutine.trace() as tracer:  # with the plates before a failure as well
        for program in (pair.model, pair.guide):
            with suppress(Exception):
                program(x, fields)
    made = {n["name"]: n["fn"] for n in tracer.trace.nodes.values() if n["type"] == "sample"}
    plates = {fn.size: name for name, fn in made.items() if isinstance(fn, _Subsample)}
    if x.dim() > 1 and x.shape[1] in plates and len(x) not in plates:
        return (
            f"plate {plates[x.shape[1]]!r} has {x.shape[1]} images, as many as x has "
            "columns, and images are rows here (x[0] is the first): give x.transpose(0, 1), and "
            "let the programs transpose it back, or train it by fit(…, batch_size=None); otherwise: "
        )
    return ""


def _why_it_failed(
    program: Program, x: Tensor, fields: Fields, error: Exception, first: int
) -> str:
    """Pyro's own words say which dimensions differ; ours say which site, whose shapes, and what to
    change.
    """
    if (bad := _first_nan(x)) is not None:
        return (
            f"x: {one_of(x)} {first + bad} has a NaN, and the {program.role} fails on it "
            f"({type(error).__name__}): {_OF_A_NAN}"
        )
    site = _site_of(error)
    if site is None or "Shape mismatch inside plate" not in str(error):
        on = f"on {len(x)} {one_of(x)}s of shape {tuple(x.shape[1:])}"
        return failure(program.role, on, error) + _hints(program, fields, error)
    plate = str(error).split("plate(")[1].split(")")[0].strip("'\"")
    return (
        f"{shapes_of(program.role, site)}, which don't fit plate {plate!r} of {len(x)} "
        f"{one_of(x)}s. The dimensions that belong to one {one_of(x)} must be event dimensions: write "
        f"`.to_event({max(len(site['fn'].batch_shape) - 1, 1)})` on its distribution"
    )


def _hints(program: Program, fields: Fields, error: Exception) -> str:
    """What is unusual in what the program was given, and may be why it failed."""
    if "subsample_size does not match" in str(error):
        return " (fit(…, batch_size=None) trains it; to score, let the plate take all its rows)"
    found = [
        f"field {name!r} has the value {int(value.min())}"
        for name, value in program.select(fields).items()
        if not (value.is_floating_point() or is_constant(name)) and bool((value < 0).any())
    ]
    return f" ({', '.join(found)})" if found else ""


def _first_nan(x: Tensor) -> int | None:
    bad = x.isnan().reshape(len(x), -1).any(1).nonzero()
    return int(bad[0]) if len(bad) else None


def failure(role: str, when: str, error: Exception) -> str:
    site = _site_of(error)
    where = "" if site is None else f", at site {site['name']!r}"
    first_line, *others = (str(error).strip() or repr(error)).splitlines()
    if first_line.endswith("found invalid values:"):  # torch prints the tensor below
        first_line = first_line[:-1] + (" (NaN)" if any("nan" in line for line in others) else "")
    return f"the {role} failed {when}{where}: {type(error).__name__}: {first_line}"


def shapes_of(role: str, node: Any) -> str:
    fn = node["fn"]
    shapes = f"batch shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}"
    return f"site {node['name']!r} of the {role} has {shapes}"


def _site_of(error: Exception) -> Any | None:
    """The sample statement under way when Pyro raised, from the frames of the traceback."""
    frames, found = error.__traceback__, None
    while frames is not None:
        message = frames.tb_frame.f_locals.get("msg")
        if (
            isinstance(message, dict)
            and message.get("type") == "sample"
            and hasattr(message.get("fn"), "batch_shape")
        ):
            found = message
        frames = frames.tb_next
    return found
