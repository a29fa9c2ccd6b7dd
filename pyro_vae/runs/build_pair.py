"""From the options of a training to its model and guide."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pyro_vae.choices import lookup, registry, specs
from pyro_vae.data.image_data import ImageData
from pyro_vae.data.labels import refuse_unfit
from pyro_vae.errors import UserError
from pyro_vae.protocols import hook
from pyro_vae.runs.options import Train
from pyro_vae.runs.sizes import refuse_impossible

PARTS_OF_MODELS = ("prior", "likelihood")
"""The options that a model receives where its constructor names them."""


TAKEN = (*PARTS_OF_MODELS, "net", "latent_dim")
"""The options that no part need take."""


def about_the_data(options: Train, data: ImageData) -> dict[str, int]:
    """What the parts may name besides the images' shape: ``levels`` of grey as they are observed,
    ``num_classes``.
    """
    known = {}
    if data.levels is not None:
        known["levels"] = (
            2 if options.binarize in ("dynamic", "static", "threshold") else data.levels
        )
    labels = [part for part in (data.train_labels, data.test_labels) if part is not None]
    parts = {slot: getattr(options, slot) for slot in ("model", "guide", *PARTS_OF_MODELS)}
    if any("num_classes" in _names(slot, choice) for slot, choice in parts.items()):
        refuse_unfit(data.name, labels)
    if labels and min(int(part.min()) for part in labels) >= 0:
        known["num_classes"] = 1 + max(int(part.max()) for part in labels)
    return known


def build_pair(
    options: Train,
    event_shape: Sequence[int],
    num_data: int,
    levels: int | None = None,
    num_classes: int | None = None,
) -> tuple[Any, Any]:
    """Model and guide as the options name them, freshly initialised from the seed; torch's own
    random state is left alone.

    Every argument that a choice leaves open is filled by its name: ``event_shape``, ``latent_dim``,
    ``net``, ``num_data`` (images to fit on), ``levels`` (of grey), ``num_classes``, ``prior``,
    ``likelihood``; for a guide the built model and its parts too, and ``input_scale``, by which an
    encoder divides the integers that the likelihood observes. Where a part of the model names an
    ``encoder``, the guide is built first and is that encoder.

    Raises:
        UserError: a choice that can't be built; a part of the model that needs the guide, which
            needs the model.
    """
    context: dict[str, Any] = {
        "event_shape": tuple(event_shape),
        "latent_dim": options.latent_dim,
        "net": options.net,
        "num_data": num_data,
    }
    known = {"missing": options.missing, "levels": levels, "num_classes": num_classes}
    context |= {name: value for name, value in known.items() if value is not None}
    of_guides = (
        {"input_scale": float(levels - 1)} if levels is not None and _sees_levels(options) else {}
    )
    make = partial(_made, options, context, of_guides)
    with torch.random.fork_rng(devices=[]):
        refuse_impossible(options, event_shape, make)
        torch.default_generator.manual_seed(options.seed)
        return make()


def _made(
    options: Train, context: Mapping[str, Any], of_guides: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Model and guide, whose arguments are filled from the context."""
    context = dict(context)
    named = {name: getattr(options, name) for name in PARTS_OF_MODELS}
    guide = None
    if asking := [
        name
        for name in ("model", *PARTS_OF_MODELS)
        if "encoder" in _names(name, getattr(options, name))
    ]:
        _refuse_circle(asking[0], options)
        guide = context["encoder"] = registry.build("guide", options.guide, **context, **of_guides)
    model = registry.build("model", options.model, **context, **named)
    if guide is None:
        parts = {name: getattr(model, name) for name in PARTS_OF_MODELS if hasattr(model, name)}
        guide = registry.build("guide", options.guide, **context, **of_guides, **parts, model=model)
    return model, guide


def _names(slot: str, choice: str, *, required: bool = False) -> set[str]:
    """The arguments that the constructor of this part names and the choice leaves open; those
    without a default alone.
    """
    read = specs.parse(choice)
    try:
        parameters = [*inspect.signature(lookup.resolve(slot, read.name)).parameters.values()]
    except (TypeError, ValueError):  # no signature, or nothing to call: the registry says which
        return set()
    names = {p.name for p in parameters if not (required and p.default is not p.empty)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and not required:
        names |= {"net", "latent_dim"}  # which it may pass on
    return names - read.kwargs.keys()


def taken_by_parts(options: Train) -> set[str]:
    """The options that reach a part: those that the model or the guide names, and what the model's
    own parts name.
    """
    own = _names("model", options.model)
    if "likelihood" in own:  # it decodes latent_dim numbers by a net
        own |= {"net", "latent_dim"}
    of_guide = _names("guide", options.guide)
    return own | (of_guide & {"net", "latent_dim"})


def refuse_unused(options: Train) -> None:
    """An option that no part of the experiment reads would be recorded, and mean nothing."""
    taken = taken_by_parts(options)
    for name in TAKEN:
        choice = getattr(options, name)
        if name not in taken and choice != getattr(Train, name):
            raise UserError(
                f"--{name.replace('_', '-')} {choice}: the model {options.model} takes no {name}"
                + (f", nor does the guide {options.guide}" if name not in PARTS_OF_MODELS else "")
                + f": leave it out, or choose a model that has one, such as {Train.model}"
            )


def _refuse_circle(slot: str, options: Train) -> None:
    """The guide that is to be the encoder of the model's part must not need the model."""
    if circle := sorted(
        _names("guide", options.guide, required=True) & {"model", *PARTS_OF_MODELS}
    ):
        raise UserError(
            f"--{slot} {getattr(options, slot)} needs the guide as its encoder, and --guide "
            f"{options.guide} needs the {circle[0]}: neither can be built first. Use a guide "
            f"that needs no model, such as MeanField, or another {slot}"
        )


def _sees_levels(options: Train) -> bool:
    """Whether what is observed are the stored integers, as the model's class or its likelihood's
    says.
    """
    parts = [
        lookup.resolve(slot, specs.parse(getattr(options, slot)).name)
        for slot in ("model", "likelihood")
    ]
    return next(filter(None, (hook(part, "observes") for part in parts)), None) in (
        "levels",
        "counts",
    )
