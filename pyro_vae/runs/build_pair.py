"""From the options of a training to its model and guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pyro_vae import memory
from pyro_vae.choices import lookup, registry, specs
from pyro_vae.data.image_data import ImageData
from pyro_vae.data.labels import refuse_unfit
from pyro_vae.errors import UserError, first_line
from pyro_vae.protocols import hook
from pyro_vae.runs.options import Train

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


WORTH_COUNTING = 2000
"""From such a number in the options on the parameters are counted first."""

LARGEST = 10**8
"""No part has more of anything; one that is asked for 10⁹ layers may begin to make them before it
has a parameter to count.
"""

MOST_TENSORS = 20_000
"""Parameters of a model that someone trains are fewer."""


class _TooLarge(Exception):
    pass


def refuse_impossible(
    options: Train, event_shape: Sequence[int], build: Callable[[], object]
) -> None:
    """A ``UserError`` where the pair that ``build`` makes has more parameters than there is memory:
    it is made without numbers first, and counted.
    """
    parts = (options.model, options.prior, options.likelihood, options.guide, options.net)
    written = [each for part in parts for each in specs.within(specs.parse(part))]
    largest = max([0, *(each for each in written if isinstance(each, int))])
    if largest > LARGEST:
        raise UserError(f"{largest} is too large for the size of a part: choose smaller parts")
    if max(prod(event_shape) // 1000, options.latent_dim, largest) < WORTH_COUNTING:
        return
    tensors, held = 0, 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal tensors, held
        if isinstance(parameter, torch.Tensor):
            tensors, held = tensors + 1, held + parameter.numel() * parameter.element_size()
        if tensors > MOST_TENSORS or held > memory.limit():
            raise _TooLarge

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build()
    except _TooLarge:
        have = (
            f"{memory.in_words(held)} of parameters, but there are only "
            f"{memory.in_words(memory.limit())} of memory"
        )
        what = have if tensors <= MOST_TENSORS else f"more than {MOST_TENSORS} parameter tensors"
        raise UserError(f"this pair has {what}: choose smaller parts") from None
    except UserError:
        raise
    except (
        Exception
    ) as error:  # what is wrong otherwise is reported when the pair is made in earnest
        if any(words in str(error).lower() for words in ("overflow", "storage size")):
            raise UserError(
                f"this pair does not fit into any memory ({first_line(error)}): choose smaller "
                "parts"
            ) from error
    finally:
        handle.remove()
