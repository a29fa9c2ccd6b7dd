"""The objects of an experiment, built from its options: data, observation, model and guide."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.choices import lookup, registry, specs
from pyro_vae.data import datasets as image_data
from pyro_vae.data.datasets import ImageData, Likeness
from pyro_vae.data.labels import refuse_unfit
from pyro_vae.data.transforms import OBSERVES, Observed, doubts, observe
from pyro_vae.errors import UserError
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.protocols import hook
from pyro_vae.rng import permutation
from pyro_vae.runs.options import Train
from pyro_vae.runs.sizes import refuse_impossible
from pyro_vae.training.checkpoint import state_of

PARTS_OF_MODELS = ("prior", "likelihood")
"""The options that a model receives where its constructor names them."""

TAKEN = (*PARTS_OF_MODELS, "net", "latent_dim")
"""The options that no part need take."""

SAID = (
    *("model", "prior", "likelihood", "guide", "net", "latent_dim"),
    *("objective", "init_from", "freeze"),
)
"""The options that a protocol says, in this order."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """All that a training and its evaluation need.

    Attributes:
        train_rows, valid_rows: the rows of the stored training set to fit on, and those for
            validation (None for none).
        kind: ``mass`` or ``density``, or None where the model does not say.
    """

    options: Train
    data: ImageData
    observed: Observed
    model: Any
    guide: Any
    train_rows: Tensor
    valid_rows: Tensor | None
    kind: str | None

    @property
    def x_train(self) -> Tensor:
        """The images to fit on, to which ``observed.observe`` is applied at each visit, (N,
        *event).
        """
        return self.observed.x_train[self.train_rows]

    @property
    def programs(self) -> tuple[tuple[str, Program], tuple[str, Program]]:
        """Model and guide as the engine calls them."""
        return ("model", Program("model", self.model)), ("guide", Program("guide", self.guide))

    @property
    def wants_labels(self) -> bool:
        """Whether the model or the guide names the field ``y``."""
        return any(program.wants("y") for _, program in self.programs)

    @property
    def fields_train(self) -> dict[str, Any]:
        """The named fields of ``x_train``: the labels ``y``, where a program names them, or those
        of them that are kept.
        """
        found, number = self._fields(self.data.train_labels, self.train_rows), self.options.labels
        if number is None:
            return found
        kept = few_labels(found["y"], number, self.options.data_seed)
        return {"y": torch.where(kept, found["y"], -1)}

    def accuracy(self, split: str, number: int | None) -> dict[str, float]:
        """The accuracy of the guide's q(y | x) on `images`, if it has one."""
        classify, y = hook(self.guide, "classify"), self.fields(split, number).get("y")
        if classify is None or y is None:
            return {}
        pair, x = Pair.of(self.model, self.guide), self.images(split, number)[0]
        place = next(iter(pair.tensors())).device
        with pair.active(training=False), torch.no_grad():
            found = [classify(pair.cast(part.to(place))).argmax(-1).cpu() for part in x.split(500)]
        return {"accuracy": float((torch.cat(found) == y.cpu()).double().mean())}

    @property
    def fields_valid(self) -> dict[str, Any]:
        """The named fields of the validation images."""
        rows = self.valid_rows
        return {} if rows is None else self._fields(self.data.train_labels, rows)

    def fields(self, split: str, number: int | None) -> dict[str, Any]:
        """The named fields of `images` (the same arguments)."""
        every = slice(None)
        whole = (
            self._fields(self.data.test_labels, every) if split != "valid" else self.fields_valid
        )
        return {name: value[_chosen(len(value), number)] for name, value in whole.items()}

    def _fields(self, labels: Tensor | None, rows: Tensor | slice) -> dict[str, Any]:
        return {} if labels is None or not self.wants_labels else {"y": labels[rows]}

    @property
    def doubts(self) -> str:
        """What in the data speaks against how they are observed, with the remedy; or nothing."""
        observes, _ = _observes(self.model, self.options)
        return doubts(self.data, self.observed, observes, self.options.levels is not None)

    @property
    def amortized(self) -> bool:
        """Whether the guide has a q(z | x) of images that it was not fitted on."""
        return bool(hook(self.guide, "amortized"))

    @property
    def stored_valid(self) -> Tensor | None:
        """The validation images, for `fit`, which observes them once as `images` does; or None."""
        return None if self.valid_rows is None else self.observed.x_train[self.valid_rows]

    @property
    def x_valid(self) -> Tensor | dict[str, Any] | None:
        """What `fit` receives as the validation images: with their named fields, where there are
        any.

        Nothing, where the guide has no q(z | x) of them (it is not ``amortized``).
        """
        if not self.amortized:
            return None
        if self.stored_valid is None or not self.fields_valid:
            return self.stored_valid
        return {"x": self.stored_valid, **self.fields_valid}

    def images(self, split: str, number: int | None) -> tuple[Tensor, dict[str, Any]]:
        """The images of ``test``, ``valid`` or ``all``, or ``number`` of them (the same at every
        call), and words for the protocol.

        Raises:
            UserError: there are no validation images, or fewer images than that are there.
        """
        x, words = self.observed.x_test, {"all": "new"}.get(split, "test")
        if split == "valid":
            if self.stored_valid is None:
                raise UserError(
                    "--split valid: this run has no validation images (its --valid-fraction is 0)"
                )
            # the draw that `fit` makes of the validation set, from its own seed
            draw, x = self.observed.observe, self.stored_valid
            x = x if draw is None else draw.fixed(x, self.options.seed, "validation")
            words = f"validation ({self.options.valid_fraction:g} of train)"
        one = self.data.one
        if number is not None and number > len(x):
            raise UserError(f"{number} {one}s were requested, but the {split} set has {len(x)}")
        if number is None or number == len(x):
            return x, {"images": words}
        words = f"{number} of {len(x)} {words} {one}s, chosen from seed 0"
        return x[_chosen(len(x), number)], {"images": words}

    def protocol(self, steps: int) -> dict[str, Any]:
        """What is known of the numbers that come out, in words."""
        known = {key: value for key, value in self.observed.protocol.items() if key != "sha256"}
        options, dims = self.options, hook(self.model, "latent_dims")
        taken = _taken(options) | {"latent_dim"} if dims else _taken(options)
        names = [name for name in SAID if name in taken or name not in TAKEN]
        said = {"kind": self.kind, "missing": options.missing and "left out (NaN)"}
        said |= {name: getattr(options, name) for name in names}
        if dims:  # a hierarchy's, which may say them itself
            said["latent_dim"] = tuple(dims)
        paths = {name: str(value) for name, value in said.items() if isinstance(value, Path)}
        given = {name: value for name, value in {**said, **paths}.items() if value}
        return {**known, **given, "steps": steps}


def few_labels(y: Tensor, number: int, seed: int) -> Tensor:
    """Which of the labels ``y``, ``(N,)``, to keep: ``number`` of them, as many of one class as of
    another up to one, chosen at random.

    Raises:
        UserError: a class has too few images.
    """
    order = permutation(len(y), seed)
    classes = permutation(int(y.max()) + 1, seed).tolist()
    kept = torch.zeros(len(y), dtype=torch.bool)
    for place, each in enumerate(classes):
        share = number // len(classes) + (place < number % len(classes))
        rows = order[y[order] == each][:share]
        if len(rows) < share:
            raise UserError(
                f"--labels {number} asks for {share} images of class {each}, but the training "
                f"set has {len(rows)}: give a smaller number"
            )
        kept[rows] = True
    return kept


def _chosen(size: int, number: int | None) -> Tensor:
    """``number`` rows of ``size``, or all: a random subset, as a set's first images may be easier
    than its others (MNIST's).
    """
    if number is None or number == size:
        return torch.arange(size)
    return permutation(size, 0)[:number].sort().values


def load_data(
    options: Train,
    data: str | None = None,
    root: Path | None = None,
    like: Likeness | None = None,
) -> ImageData:
    """The data that the options name, or those at another place; of others ``like`` them, all."""
    found = image_data.load(
        options.data if data is None else data,
        options.data_root if root is None else root,
        seed=options.data_seed,
        images_key=options.images_key,
        columns=options.columns,
        label=options.label,
        missing=options.missing,
        like=like,
    )
    return found if options.levels is None else found.with_levels(options.levels)


def scored(options: Train, data: ImageData, model: Any, guide: Any) -> Experiment:
    """A trained pair with all of another set as its test set, observed as the options say."""
    observes, kind = _observes(model, options)
    observed = observe(data, options.binarize, observes, options.data_seed)
    every = torch.arange(len(data.test))
    experiment = Experiment(options, data, observed, model, guide, every, None, kind)
    _refuse_unlabelled(experiment)
    return experiment


def prepare(
    options: Train, data: ImageData | None = None, pair: tuple[Any, Any] | None = None
) -> Experiment:
    """Load the data, build the parts and decide what is observed; nothing is trained or written.

    Args:
        data, pair: those, where they are there already: the images, and the model with its guide.

    Raises:
        UserError: the data, a part, or the two together are wrong.
    """
    data = load_data(options) if data is None else data
    train_rows, valid_rows = torch.arange(len(data.train)), None
    if options.valid_fraction:
        train_rows, valid_rows = data.validation_split(options.valid_fraction, options.data_seed)
    if options.batch_size > len(train_rows):
        raise UserError(
            f"--batch-size {options.batch_size} is larger than the training set, "
            f"{len(train_rows)} {data.one}s: give --batch-size {len(train_rows)} or less"
        )
    known = about_the_data(options, data)
    _refuse_unused(options)
    model, guide = pair or build_pair(options, data.event_shape, len(train_rows), **known)
    observes, kind = _observes(model, options)
    observed = observe(data, options.binarize, observes, options.data_seed)
    _check_levels(model, observes, known, data.name)
    experiment = Experiment(options, data, observed, model, guide, train_rows, valid_rows, kind)
    _refuse_unlabelled(experiment)
    if options.early_stopping is not None and not experiment.amortized:
        raise UserError(
            "--early-stopping needs the ELBO of the validation images, but the guide "
            f"{options.guide} has no q(z | x) of them: leave it out, or choose an amortized "
            "guide such as MeanField"
        )
    return experiment


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


def _taken(options: Train) -> set[str]:
    """The options that reach a part: those that the model or the guide names, and what the model's
    own parts name.
    """
    own = _names("model", options.model)
    if "likelihood" in own:  # it decodes latent_dim numbers by a net
        own |= {"net", "latent_dim"}
    of_guide = _names("guide", options.guide)
    return own | (of_guide & {"net", "latent_dim"})


def _refuse_unused(options: Train) -> None:
    """An option that no part of the experiment reads would be recorded, and mean nothing."""
    taken = _taken(options)
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


def _check_levels(model: Any, observes: str, known: Mapping[str, int], name: str) -> None:
    """A mass over other levels than the data's has outcomes that never happen, or does not have
    some that do.
    """
    levels = hook(getattr(model, "likelihood", model), "levels")
    if observes == "levels" and levels is not None and levels != known.get("levels", levels):
        raise UserError(
            f"the likelihood is for {levels} levels, but {name} has {known['levels']}: write "
            f"levels={known['levels']}, or leave levels out"
        )


def _refuse_unlabelled(experiment: Experiment) -> None:
    """A program that names the field y needs a data set with labels for all of its images; and some
    labels are kept for such a program alone.
    """
    data, number = experiment.data, experiment.options.labels
    if number is not None and not experiment.wants_labels:
        raise UserError(
            f"--labels {number}: neither the model {experiment.options.model} nor the guide "
            f"{experiment.options.guide} takes labels: leave --labels out, or choose --model "
            "SemiSupervised --guide SemiSupervised"
        )
    if experiment.wants_labels:
        refuse_unfit(data.name, (data.train_labels, data.test_labels))
    for role, program in experiment.programs:
        if program.wants("y") and (data.train_labels is None or data.test_labels is None):
            choice = getattr(experiment.options, role)
            raise UserError(
                f"--{role} {choice} needs the class y of each image, but {data.name} has no "
                f"labels: choose data with labels, such as digits or mnist, or a {role} that "
                "takes none"
            )


LARGE = 30.0
"""Values that a network at its initial weights takes to where a scale is 0 or infinite."""


def if_large(experiment: Experiment) -> str:
    """What to do about real values that are large; else nothing."""
    largest = float(experiment.observed.x_test.nan_to_num().abs().max())
    if experiment.data.levels is not None or largest < LARGE:
        return ""
    return (
        f"; the values go up to {largest:.4g}: scale the data, such as to mean 0 and standard "
        "deviation 1"
    )


def dry_run(experiment: Experiment, device: torch.device) -> Structure:
    """The pair's structure on a few test images, once it is sure that a checkpoint can store
    the pair.

    Raises:
        UserError: a bad pair, or one with parameters that no ``state_dict`` has.
    """
    state_of(experiment.model, experiment.guide)
    pair = Pair.of(experiment.model, experiment.guide).to(device)
    few = pair.cast(experiment.observed.x_test[:5].to(device))
    named = {name: value[:5].to(device) for name, value in experiment.fields("test", None).items()}
    try:
        structure = pair.structure(few, {**named, "index": torch.arange(len(few), device=device)})
    except UserError as error:
        raise UserError(f"{error}{if_large(experiment)}") from error
    if pair.store.parameters:
        raise UserError(
            f"pyro.param({next(iter(pair.store.parameters))!r}) is in no module's state_dict, "
            "so a checkpoint would not have it: make it an nn.Parameter or a PyroParam of the "
            "model or guide"
        )
    return structure


def _observes(model: Any, options: Train) -> tuple[str, str | None]:
    """What the model's x is (one of `OBSERVES`), and the kind of its log p(x); said by the
    likelihood, or by the model.
    """
    law = getattr(model, "likelihood", model)
    observes = hook(law, "observes")
    if observes is None and options.binarize == "auto":
        raise UserError(
            f"the model {options.model} does not say what kind of x it observes: give it an "
            f"attribute `observes`, one of {', '.join(OBSERVES)}, or choose with --binarize"
        )
    return observes or "real", hook(law, "kind")
