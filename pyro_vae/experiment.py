"""From the options of a training to its objects: data, what is observed of them, model and guide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae import data as image_data
from pyro_vae import registry
from pyro_vae.checkpoint import state_of
from pyro_vae.data import ImageData
from pyro_vae.errors import UserError
from pyro_vae.observation import OBSERVES, Observed, observe
from pyro_vae.options import Train
from pyro_vae.pair import Pair
from pyro_vae.structure import Structure

PARTS_OF_MODELS = ("prior", "likelihood")
"""The options that a model receives where its constructor names them."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """All that a training and its evaluation need.

    Attributes:
        train_rows, valid_rows: the rows of the stored training set to fit on, and those held out (None for none).
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
        """The images to fit on, to which ``observed.observe`` is applied at each visit, (N, *event)."""
        return self.observed.x_train[self.train_rows]

    @property
    def stored_valid(self) -> Tensor | None:
        """The images held out, for `fit`, which observes them once as `images` does; or None."""
        return None if self.valid_rows is None else self.observed.x_train[self.valid_rows]

    def images(self, split: str, number: int | None) -> tuple[Tensor, dict[str, Any]]:
        """The images of ``test`` or ``valid``, or ``number`` of them (the same at every call), and words for the protocol.

        Raises:
            UserError: nothing was held out, or fewer images than that are there.
        """
        x, words = self.observed.x_test, "test"
        if split == "valid":
            if self.stored_valid is None:
                raise UserError("--split valid: nothing was held out in this run (its --valid-fraction is 0)")
            x, words = self._observed_valid(self.stored_valid), f"validation ({self.options.valid_fraction:g} of train)"
        if number is not None and number > len(x):
            raise UserError(f"{number} images were asked for, but the {split} set has {len(x)}")
        if number is None or number == len(x):
            return x, {"images": words}
        # a random subset, as the first images of a set may be easier than its others (MNIST's test set)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return x[order[:number].sort().values], {"images": f"{number} of {len(x)} {words} images, chosen from seed 0"}

    def _observed_valid(self, rows: Tensor) -> Tensor:
        """The draw that `fit` makes of the validation set, from its own seed."""
        draw = self.observed.observe
        return rows if draw is None else draw.fixed(rows, self.options.seed, "validation")

    def protocol(self, steps: int) -> dict[str, Any]:
        """What is known of the numbers that come out, in words."""
        known = {key: value for key, value in self.observed.protocol.items() if key != "sha256"}
        parts = {name: getattr(self.options, name) for name in PARTS_OF_MODELS if hasattr(self.model, name)}
        return {
            **known,
            **({"kind": self.kind} if self.kind else {}),
            "model": self.options.model,
            **parts,
            "guide": self.options.guide,
            "net": self.options.net,
            "latent_dim": self.options.latent_dim,
            "objective": self.options.objective,
            "steps": steps,
        }


def prepare(options: Train) -> Experiment:
    """Load the data, build the parts and decide what is observed; nothing is trained or written.

    Raises:
        UserError: the data, a part, or the two together are wrong.
    """
    data = image_data.load(options.data, options.data_root, seed=options.data_seed)
    train_rows, valid_rows = torch.arange(len(data.train)), None
    if options.valid_fraction:
        train_rows, valid_rows = data.validation_split(options.valid_fraction, options.data_seed)
    if options.batch_size > len(train_rows):
        raise UserError(
            f"--batch-size {options.batch_size} is larger than the training set, {len(train_rows)} images: "
            f"give --batch-size {len(train_rows)} or less"
        )
    model, guide = build_pair(options, data.event_shape, len(train_rows))
    observes, kind = _observes(model, options)
    observed = observe(data, options.binarize, observes, options.data_seed)
    return Experiment(options, data, observed, model, guide, train_rows, valid_rows, kind)


def build_pair(options: Train, event_shape: Sequence[int], num_data: int) -> tuple[Any, Any]:
    """Model and guide as the options name them, freshly initialised from the seed; torch's own random state is left alone.

    Every argument that a choice leaves open is filled by its name: ``event_shape``, ``latent_dim``, ``net``, ``num_data``
    (images to fit on), ``prior``, ``likelihood``; for a guide the built model and its parts too.
    """
    context: dict[str, Any] = {
        "event_shape": tuple(event_shape),
        "latent_dim": options.latent_dim,
        "net": options.net,
        "num_data": num_data,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        named = {name: getattr(options, name) for name in PARTS_OF_MODELS}
        model = registry.build("model", options.model, **context, **named)
        for name, choice in named.items():
            if not hasattr(model, name) and choice != getattr(Train, name):
                raise UserError(f"--{name} {choice}: the model {options.model} takes no {name}")
        parts = {name: getattr(model, name) for name in PARTS_OF_MODELS if hasattr(model, name)}
        guide = registry.build("guide", options.guide, **context, **parts, model=model)
    return model, guide


def dry_run(experiment: Experiment, device: torch.device) -> Structure:
    """The pair's structure on a few test images, once it is sure that a checkpoint can hold the pair.

    Raises:
        UserError: a bad pair, or one with parameters that no ``state_dict`` has.
    """
    state_of(experiment.model, experiment.guide)
    pair = Pair.of(experiment.model, experiment.guide).to(device)
    few = pair.cast(experiment.observed.x_test[:5].to(device))
    structure = pair.structure(few, {"index": torch.arange(len(few), device=device)})
    if pair.store.parameters:
        raise UserError(
            f"pyro.param({next(iter(pair.store.parameters))!r}) is in no module's state_dict, so a run's checkpoint would lose "
            "it: make it an nn.Parameter or a PyroParam of the model or guide"
        )
    return structure


def _observes(model: Any, options: Train) -> tuple[str, str | None]:
    """What the model's x is (one of `OBSERVES`), and the kind of its log p(x); said by the likelihood, or by the model."""
    law = getattr(model, "likelihood", model)
    observes = getattr(law, "observes", None)
    if observes is None and options.binarize == "auto":
        raise UserError(
            f"the model {options.model} does not say what its x is: give it an attribute `observes`, one of "
            f"{', '.join(OBSERVES)}, or choose with --binarize"
        )
    return observes or "real", getattr(law, "kind", None)
