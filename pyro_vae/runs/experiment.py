"""The objects of an experiment, built from its options: data, observation, model and guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import datasets as image_data
from pyro_vae.data.image_data import ImageData, Likeness
from pyro_vae.data.labels import few_labels, refuse_unfit
from pyro_vae.data.transforms import OBSERVES, Observed, doubts, observe
from pyro_vae.errors import UserError
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair
from pyro_vae.protocols import hook
from pyro_vae.rng import permutation
from pyro_vae.runs.build_pair import (
    TAKEN,
    about_the_data,
    build_pair,
    refuse_unused,
    taken_by_parts,
)
from pyro_vae.runs.options import Train

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
    def labelled(self) -> list[str]:
        """Which of model and guide name the field ``y``."""
        programs = {"model": self.model, "guide": self.guide}
        return [role for role, part in programs.items() if Program(role, part).wants("y")]

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
        return {} if labels is None or not self.labelled else {"y": labels[rows]}

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
        taken = taken_by_parts(options) | {"latent_dim"} if dims else taken_by_parts(options)
        names = [name for name in SAID if name in taken or name not in TAKEN]
        said: dict[str, Any] = {"kind": self.kind, "missing": options.missing and "left out (NaN)"}
        said |= {name: getattr(options, name) for name in names}
        if dims:  # a hierarchy's, which may say them itself
            said["latent_dim"] = tuple(dims)
        paths = {name: str(value) for name, value in said.items() if isinstance(value, Path)}
        given = {name: value for name, value in {**said, **paths}.items() if value}
        return {**known, **given, "steps": steps}


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
    refuse_unused(options)
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
    if number is not None and not experiment.labelled:
        raise UserError(
            f"--labels {number}: neither the model {experiment.options.model} nor the guide "
            f"{experiment.options.guide} takes labels: leave --labels out, or choose --model "
            "SemiSupervised --guide SemiSupervised"
        )
    if experiment.labelled:
        refuse_unfit(data.name, (data.train_labels, data.test_labels))
    for role in experiment.labelled:
        if data.train_labels is None or data.test_labels is None:
            choice = getattr(experiment.options, role)
            raise UserError(
                f"--{role} {choice} needs the class y of each image, but {data.name} has no "
                f"labels: choose data with labels, such as digits or mnist, or a {role} that "
                "takes none"
            )


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
