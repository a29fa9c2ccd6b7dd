"""What a guide's sites ask of their objective by ``infer={…}``, and whether it can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_vae.errors import UserError, first_line
from pyro_vae.pair.enumeration import num_values
from pyro_vae.pair.layouts import Fields, every_value, plain_draw, trace_model
from pyro_vae.pair.program import validation
from pyro_vae.pair.structure import Structure

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair

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
    plate = other_plate(node, data_plate)
    return f"it is in plate {plate!r} as well as in the data plate" if plate else ""


def other_plate(node: Any, data_plate: Any) -> str:
    """The name of a plate of the site that is not its data plate, if both are there."""
    frames = node["cond_indep_stack"] if data_plate is not None else ()
    return next((frame.name for frame in frames if frame != data_plate), "")


def why_not_enumerated(pair: Pair, x: Tensor, fields: Fields, structure: Structure) -> str:
    """Why the programs can't run at all values of the sites that ask for it; nothing where they
    can.
    """
    values = structure.enumerated
    at = replace(structure.geometry, enumerated=values)
    with validation(distributions=True):
        try:
            drawn = plain_draw(every_value(pair.guide, at), x, fields)
            trace_model(pair.model, drawn, x, fields, at).compute_log_prob()
        except Exception as error:  # whatever a program raises on values of another shape
            return (
                f"{_ENUMERATE}, and the programs fail at all its values at once "
                f"({first_line(error)}): write them for values of shape (values, 1, …), by "
                "torch.broadcast_tensors before torch.cat"
            )
    dims = [drawn.nodes[name]["infer"].get("_enumerate_dim") for name in values]
    if dims != list(range(at.particle_dim - 1, at.particle_dim - 1 - len(dims), -1)):
        return f"{_ENUMERATE}, and its dimension is shared in a pyro.markov"
    return ""
