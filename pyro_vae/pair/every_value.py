"""Enumerated sites: those of the guide that ask for it by ``infer={…}``, and those of the model
without a guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyro import poutine
from torch import Tensor

from pyro_vae.errors import UserError, first_line
from pyro_vae.pair.enumeration import num_values
from pyro_vae.pair.layouts import every_value, trace_model
from pyro_vae.pair.nodes import Fields, plain_draw, sample_nodes
from pyro_vae.pair.program import validation
from pyro_vae.pair.structure import Geometry, Structure
from pyro_vae.pair.trial import failure

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair

Batch = tuple[Tensor, Fields]

_ENUMERATE = "to be enumerated (config_enumerate), as in pyro.infer.TraceEnum_ELBO()"
_BASELINE = "for a baseline (infer={'baseline': …}), as in pyro.infer.TraceGraph_ELBO()"


def of_guide(
    guide: Mapping[str, Any], plates: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, int]]:
    """What sites ask for in vain, in words; and those that are enumerated, with the number of their
    values. ``plates`` are the sites' data plates.
    """
    asked, enumerated = {}, {}
    for name, node in guide.items():
        if node["infer"].get("baseline"):
            asked[name] = _BASELINE
        elif node["infer"].get("enumerate"):
            if why := _why_not(node, plates.get(name)):
                asked[name] = f"{_ENUMERATE}, and here {why}"
            else:
                enumerated[name] = num_values(node)
    return asked, enumerated


def _why_not(node: Any, data_plate: Any) -> str:
    if node["infer"].get("num_samples"):
        return "it has num_samples"
    try:
        num_values(node)
    except UserError:
        return "it has no list of values, or is masked"
    plate = _other_plate(node, data_plate)
    return f"it is in plate {plate!r} as well as in the data plate" if plate else ""


def _other_plate(node: Any, data_plate: Any) -> str:
    """The name of a plate of the site that is not its data plate, if both are there."""
    frames = node["cond_indep_stack"] if data_plate is not None else ()
    return next((frame.name for frame in frames if frame != data_plate), "")


def summed_out(
    model: Mapping[str, Any], guide: Mapping[str, Any], plates: Mapping[str, Any]
) -> dict[str, int]:
    """The discrete sites that the guide does not have, and how many values each has."""
    found = {}
    for name, node in model.items():
        if node["is_observed"] or name in guide:
            continue
        found[name] = num_values(node)
        if plate := _other_plate(node, plates.get(name)):
            raise UserError(
                f"site {name!r} is missing in the guide, and it is in plate {plate!r} as well "
                "as in the data plate. A site can be summed out only if each image has one "
                "value of it: sample it in the guide, or write one site for each of its parts"
            )
    return found


def at_every_value(pair: Pair, batch: Callable[[], Batch], structure: Structure) -> Structure:
    """The structure once the programs have run at all values of the sites that ask for it, which
    are sampled where they fail; and of those that the guide does not have.

    Raises:
        UserError: the model can't run at all values of the sites that are summed out.
    """
    if structure.enumerated and (why := _why_not_run(pair, batch(), structure)):
        asked = dict.fromkeys(structure.enumerated, f"{_ENUMERATE}, and {why}")
        structure = replace(structure, asked=structure.asked | asked, enumerated={})
    return _without_summed(pair, batch(), structure) if structure.summed else structure


def _run(pair: Pair, batch: Batch, at: Geometry) -> tuple[dict[str, Any], poutine.Trace]:
    """The model's sites, and the guide's trace."""
    with validation(distributions=True):
        drawn = plain_draw(every_value(pair.guide, at), *batch)
        trace = trace_model(pair.model, drawn, *batch, at)
        trace.compute_log_prob()
    return dict(sample_nodes(trace)), drawn


def _why_not_run(pair: Pair, batch: Batch, structure: Structure) -> str:
    values = structure.enumerated
    at = replace(structure.geometry, enumerated=values)
    try:
        _, drawn = _run(pair, batch, at)
    except Exception as error:  # whatever a program raises on values of another shape
        return (
            f"the programs fail at all its values at once ({first_line(error)}): write them for "
            "values of shape (values, 1, …), by torch.broadcast_tensors before torch.cat"
        )
    dims = [drawn.nodes[name]["infer"].get("_enumerate_dim") for name in values]
    shared = dims != list(range(at.particle_dim - 1, at.particle_dim - 1 - len(dims), -1))
    return "its dimension is shared in a pyro.markov" if shared else ""


def _without_summed(pair: Pair, batch: Batch, structure: Structure) -> Structure:
    """A latent that depends on a site that is summed out has a mixture for its prior, and no
    closed-form KL.
    """
    at, names = structure.geometry, ", ".join(map(repr, structure.summed))
    try:
        nodes, _ = _run(pair, batch, at)
    except Exception as error:
        raise UserError(
            f"{failure('model', f'with all values of {names} at once', error)}. These sites are "
            "summed out, because they are not in the guide: write the model for values of shape "
            "(values, 1, …), by torch.broadcast_tensors before torch.cat, or sample them in the "
            "guide"
        ) from error
    dims = {nodes[name]["infer"]["_enumerate_dim"] for name in structure.summed}
    if len(dims) < len(structure.summed):
        raise UserError(
            f"{names} share dimensions in a pyro.markov: leave pyro.markov out, because all their "
            "values are summed at once"
        )
    mixed = [n for n in structure.latents if nodes[n]["unscaled_log_prob"].dim() > -at.particle_dim]
    why = f"its prior is a mixture over {names}, which is summed out"
    analytic = tuple(name for name in structure.analytic if name not in mixed)
    return replace(
        structure, analytic=analytic, sampled=structure.sampled | dict.fromkeys(mixed, why)
    )
