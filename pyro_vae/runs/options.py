"""The options of the commands and of configuration files: one dataclass for each command.

Free of torch, so that ``pyro-vae --help`` is quick. The docstrings below the fields are the command
line's help.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pyro_vae.choices.lookup import canonical
from pyro_vae.errors import UserError
from pyro_vae.training.settings import (
    Settings,
    by_site,
    check_fields,
    option,
)

OF_THE_CALL = ("config", "resume", "out", "json", "quiet", "trust")
"""Options of `train` that a run's config.toml leaves out: they say nothing of what is trained."""

FREE_ON_RESUME = ("data", "data_root", "device", "compile", "pictures", "checkpoint_minutes")
"""Options that may differ when a run is resumed: where and how, not what. The length may not: the
schedule ends with it.
"""

DEFAULT_STEPS = 10_000
"""A number of steps serves small and large sets alike; this one is 23 passes over MNIST at batch
128.
"""


CHOICES = ("model", "prior", "likelihood", "guide", "net", "objective", "optimizer", "schedule")
"""Options of `train` that name a part of the slot of the same name."""

BY_PLACE = {"place": True}
"""Of a field that is given by its place among the words, without a flag."""


@dataclass(frozen=True)
class Options:
    """One command's options. Its docstring is the command's help, and that below a field the
    option's.
    """

    command: ClassVar[str]
    """The word for it."""
    groups: ClassVar[dict[str, str]] = {}
    """Heads of the help, each with the names of its options."""
    examples: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise a ``UserError`` where a type, a range or a combination is wrong."""
        check_fields(self)


@dataclass(frozen=True)
class Experiment:
    """The data and the parts of a training."""

    data: str = "digits"
    """A data set's name (see `pyro-vae list data`), a .npz or .npy file, a .csv or .tsv table of
    numbers, or a folder of images.
    """
    images_key: str | None = None
    """For a .npz file: the name of the array of images, if it is not images."""
    columns: str | None = None
    """For a table: the columns to use, such as a,b,pixel0:pixel783; by default all but --label."""
    label: str | None = None
    """For a table or a .npz file: the name of the column or array of labels."""
    data_root: Path | None = None
    """The folder of the named sets' files; by default $PYRO_VAE_DATA, else ./data."""
    levels: int | None = option(None, least=2, below=257)
    """How many levels the stored whole numbers have; by default 256, or 2 where all are 0 or 1."""
    binarize: Literal["auto", "dynamic", "static", "threshold", "none"] = "auto"
    """How grey pixels become 0 or 1 for a Bernoulli: new pixels each time the image is used
    (dynamic), drawn once (static), 1 above one half (threshold), or not at all (none). auto: as the
    likelihood needs.
    """
    missing: Literal["nan"] | None = None
    """What marks a missing entry of x: NaN, or an empty field of a table. The likelihood leaves it
    out, and the encoder gets 0 in its place; --net "MLP(mask_channel=True)" adds the mask.
    """
    model: str = "GenerativeModel"
    """The model p(z) p(x | z). A part is a name, a call, module:Name or file.py:Name."""
    prior: str = "StandardNormal"
    """The prior p(z)."""
    likelihood: str = "Bernoulli"
    """The likelihood p(x | z), such as "Gaussian(scale=learned)"."""
    guide: str = "MeanField"
    """The guide q(z | x), such as "IAF(depth=4)". It approximates the posterior."""
    latent_dim: int = option(20, least=1, below=10**9)
    """The number of dimensions of z."""
    net: str = "MLP"
    """The network of each part without a network of its own, such as "MLP(hidden=(400, 400),
    activation=softplus)".
    """


@dataclass(frozen=True)
class Train(Settings, Experiment, Options):
    """Train a model and a guide, and estimate log p(x) of the test set."""

    command: ClassVar[str] = "train"
    groups: ClassVar[dict[str, str]] = {
        "data": "data images_key columns label labels data_root levels binarize missing valid_fraction data_seed",
        "model": "model prior likelihood guide latent_dim net",
        "training": "objective steps epochs batch_size learning_rate optimizer schedule kl_weight "
        "kl_warmup grad_clip early_stopping init_from freeze on_divergence seed device compile "
        "precision",
        "evaluation": "num_samples eval_images",
        "run": "out config resume checkpoint_minutes pictures trust json quiet",
    }
    examples: ClassVar[tuple[str, ...]] = (
        "pyro-vae train",
        'pyro-vae train --data mnist --guide "IAF(depth=4)" --net "MLP(hidden=(400, 400))"',
        'pyro-vae train --data faces/ --likelihood "Gaussian(scale=learned)" --net Conv '
        "--epochs 50",
    )

    steps: int | None = option(None, least=1, below=10**12)
    """Optimiser steps; 10000 unless --epochs is given."""
    epochs: int | None = option(None, least=1, below=10**9)
    """Passes over the training set, instead of --steps."""
    labels: int | None = option(None, least=1)
    """How many training images keep their label, chosen at random and evenly over the classes; the
    others' is -1, not known. For --model and --guide SemiSupervised; by default all keep it.
    """
    valid_fraction: float = option(0.1, least=0, below=1)
    """The share of the training set that is used for validation only; 0 for none."""
    early_stopping: int | None = option(None, least=1)
    """Stop when the validation ELBO has not risen for this many epochs, and keep the best
    parameters; by default all steps are made.
    """
    init_from: Path | None = None
    """The run whose parameters to begin with, where name and shape are the same; a line says which
    are fresh. By default all are, from --seed.
    """
    num_samples: int = option(5000, least=1, below=10**9)
    """K, the draws of z for each image in the final evaluation."""
    eval_images: int | None = option(None, least=1)
    """The number of test images to score, chosen at random; by default all."""
    pictures: bool = True
    """Draw reconstructions, samples, curves and latents into the run's folder, or don't; by default
    they are drawn.
    """
    data_seed: int = option(0, least=0, below=2**32)
    """The seed of the random splits and of the binarized test set. Only runs with the same seed can
    be compared.
    """
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is a GPU."""
    config: Path | None = None
    """A TOML file of these options, such as a run's config.toml. The command line wins over it."""
    checkpoint_minutes: float = option(5.0, least=0)
    """Write a checkpoint at least this often, also within an epoch; 0 for one after every step."""
    resume: Path | None = None
    """Continue the run in this folder from its last checkpoint, with its own options. Add --data if
    its data are at another path now.
    """
    out: Path | None = None
    """The run's folder, new or empty; by default runs/DATA-GUIDE-N."""
    json: bool = False
    """Print the result as one JSON object."""
    quiet: bool = False
    """Show no progress on stderr."""
    trust: bool = False
    """Run the Python files that the run uses (file.py:Name, module:Name) and with which you have
    not trained on this machine.
    """

    def check(self) -> None:
        """Raise a ``UserError`` where a type, a range or a combination is wrong."""
        check_fields(self)
        by_site(self.kl_weight, "--kl-weight {}")
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"--steps {self.steps} and --epochs {self.epochs}: give one of the two")
        if self.resume is not None and (self.config is not None or self.out is not None):
            other = "--config" if self.config is not None else "--out"
            raise UserError(
                f"--resume {self.resume} continues in that folder with the run's own options: "
                f"leave {other} out"
            )
        if self.early_stopping is not None and self.valid_fraction == 0:
            raise UserError(
                "--early-stopping needs the validation ELBO: give a --valid-fraction above 0"
            )

    def decided(self) -> Train:
        """The same options with the default length written out, and each choice by its own name."""
        named: dict[str, Any] = {name: canonical(name, getattr(self, name)) for name in CHOICES}
        if isinstance(self.kl_warmup, str):
            named["kl_warmup"] = canonical("warmup", self.kl_warmup)
        steps = DEFAULT_STEPS if self.steps is self.epochs is None else self.steps
        return dataclasses.replace(self, steps=steps, **named)


SUITES = ("training", "epochs", "evaluation", "memory", "startup")
"""The benchmarks' suites, in the order in which they run."""


@dataclass(frozen=True)
class Bench(Options):
    """Time the package against hand-written PyTorch, Pyro's SVI, NumPyro and Pythae (in a checkout;
    extra: bench).
    """

    command: ClassVar[str] = "bench"
    suites: tuple[Literal["training", "epochs", "evaluation", "memory", "startup"], ...] = field(
        default=(), metadata=BY_PLACE
    )
    """training: one step; epochs: whole epochs; evaluation: log p(x); memory: memory and host
    reads; startup: import and help. By default all.
    """
    only: tuple[str, ...] = ()
    """Cases of the suites, such as "iwae b20"; by default all."""
    rounds: int | None = option(None, least=1)
    """How often each contestant is timed."""
    threads: int | None = option(None, least=1)
    """The number of torch's threads; by default torch's own choice."""
    device: Literal["cpu", "cuda"] = "cpu"
    """The device of the contestants that are written in torch."""
    quick: bool = False
    """Short rounds, to see if everything runs. The figures are printed; they are saved only with
    --out.
    """
    out: Path | None = None
    """The folder for the JSON files; by default runs/bench, with --quick none."""
    json: bool = False
    """Print the results as one JSON object; the tables go to stderr."""
