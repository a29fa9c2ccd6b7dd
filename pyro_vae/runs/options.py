"""The options of the commands and of configuration files: one dataclass for each command.

Free of torch, so that ``pyro-vae --help`` is quick. The docstrings below the fields are the command
line's help.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from glob import glob, has_magic
from pathlib import Path
from typing import Any, ClassVar, Literal

from pyro_vae.choices.lookup import canonical
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.training.settings import (
    Settings,
    by_site,
    check_fields,
    expected,
    is_a,
    kinds_of,
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


@dataclass(frozen=True, kw_only=True)
class Scored(Options):
    """What a command can say of a run that is trained."""

    data: str | None = None
    """The path of the data now: a name, a file or a folder, as in `train`."""
    data_root: Path | None = None
    """The folder of the named sets' files now."""
    trust: bool = False
    """Run the Python files that the run uses (file.py:Name, module:Name) and with which you have
    not trained on this machine.
    """


@dataclass(frozen=True, kw_only=True)
class Shown(Scored):
    """And where its programs run."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is a GPU."""


@dataclass(frozen=True, kw_only=True)
class Scoring(Shown):
    """And how."""

    compile: Literal["auto", "inductor", "graph", "off"] = "auto"
    """How the programs are run; auto compiles where so much work is worth it."""
    json: bool = False
    """Print the result as one JSON object."""
    quiet: bool = False
    """Show no progress on stderr."""


@dataclass(frozen=True)
class Evaluate(Scoring):
    """Estimate log p(x) for a run again, and add the result to its results.json."""

    command: ClassVar[str] = "evaluate"
    run: Path = field(metadata=BY_PLACE)
    """The run's folder."""
    method: Literal["iw", "ais", "bdmc", "refine", "prior"] = "iw"
    """iw: importance sampling. ais: annealed importance sampling. bdmc: a lower and an upper bound
    on simulated images. refine: the two gaps of the guide. prior: naive Monte Carlo from the prior.
    """
    proposal: str | None = None
    """iw: where the draws come from, such as "Defensive(scale=2)"; by default the guide."""
    precision: Literal["float32", "tf32", "bfloat16"] | None = None
    """iw: the precision of matrix products. Less than float32 is quicker; its error is measured,
    and printed with the number.
    """
    num_samples: int | None = option(None, least=1, below=10**9)
    """iw, refine, prior: K, the draws of z for each image; by default 5000."""
    num_steps: int | None = option(None, least=1, below=10**12)
    """ais, bdmc: T, the steps of a chain, by default 1000; refine: of the optimiser, by default
    500.
    """
    num_chains: int | None = option(None, least=1, below=10**6)
    """ais, bdmc: the number of chains for each image; by default 8."""
    num_images: int | None = option(None, least=1)
    """The number of images to score, chosen at random; by default all for iw and prior, and 100 for
    ais, bdmc and refine.
    """
    split: Literal["test", "valid", "all"] = "test"
    """Which images: the test set (test), the validation images (valid), or all images of another
    data set, given by --data (all).
    """
    pictures: bool = True
    """iw, ais: draw the page of plots into the run's folder."""
    seed: int = option(0, least=0, below=2**32)
    """The seed of the draws."""

    def check(self) -> None:
        """Raise a ``UserError`` for a wrong type or range, or an option of another method."""
        check_fields(self)
        for name, methods in OF_METHODS.items():
            if getattr(self, name) is not None and self.method not in methods:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"--method {self.method} takes no {flag}, which is for "
                    f"{', '.join(methods)}: leave it out"
                )
        if self.split == "all" and self.data is None:
            raise UserError(
                "--split all scores all images of another data set: name the set with --data"
            )
        if self.method == "bdmc" and self.split != "test":
            raise UserError("--method bdmc simulates its own images: leave --split out")

    @classmethod
    def like(cls, options: Train | Compare, run: Path, **own: Any) -> Evaluate:
        """Of this run, with the options of another command and ``own`` ones."""
        names = ("num_samples", "seed", "data_root", "device", "compile", "quiet", "trust")
        return cls(run, **{**{name: getattr(options, name) for name in names}, **own})


OF_METHODS: dict[str, tuple[str, ...]] = {
    "proposal": ("iw",),
    "precision": ("iw",),
    "num_samples": ("iw", "refine", "prior"),
    "num_steps": ("ais", "bdmc", "refine"),
    "num_chains": ("ais", "bdmc"),
}
"""Options of `evaluate` that serve some methods alone."""


@dataclass(frozen=True)
class Audit(Scored):
    """Write audit.py into a run: it recomputes log weights of 20 test images by stock Pyro, without
    this package.
    """

    command: ClassVar[str] = "audit"
    run: Path = field(metadata=BY_PLACE)
    """The run's folder."""
    seed: int = option(0, least=0, below=2**32)
    """The seed of the draws at which the images are scored."""


@dataclass(frozen=True)
class Compare(Scoring):
    """Compare runs on the same images: paired differences of log p(x), from the runs' latest
    evaluations.
    """

    command: ClassVar[str] = "compare"
    examples: ClassVar[tuple[str, ...]] = (
        "pyro-vae compare runs/a runs/b",
        "pyro-vae compare 'runs/*'",
    )
    runs: tuple[Path, ...] = field(default=(), metadata=BY_PLACE)
    """The runs' folders, two or more; or patterns of them, such as 'runs/*'."""
    method: Literal["iw", "ais"] = "iw"
    """The estimator to compare; a run without a stored estimate is evaluated first."""
    num_samples: int | None = option(None, least=1, below=10**9)
    """iw: K. A run with another stored K is evaluated again; by default any stored K is used, and
    5000 if there is none.
    """
    num_images: int | None = option(None, least=1)
    """The number of images. A run with another stored number is evaluated again; by default the
    number of the first stored result.
    """
    split: Literal["test", "valid"] = "test"
    """Which images: the test set, or the validation images."""
    seed: int = option(0, least=0, below=2**32)
    """The seed of the draws, if a run is evaluated."""

    def check(self) -> None:
        """Raise a ``UserError`` where a type is wrong, or there are fewer than two runs."""
        check_fields(self)
        if self.num_samples is not None and self.method not in OF_METHODS["num_samples"]:
            raise UserError(
                f"--method {self.method} takes no --num-samples, which is for iw: leave it out"
            )
        folders = self.folders
        if len(folders) < 2:
            raise UserError(f"compare takes two or more run folders, got {len(folders)}")
        if len({each.resolve() for each in folders}) < len(folders):
            raise UserError("compare: a run folder is given twice")

    @property
    def folders(self) -> list[Path]:
        """The runs' folders, for a pattern those that fit it, from A to Z, and are not named too.

        Raises:
            UserError: no run fits a pattern.
        """
        given = [each.expanduser() for each in self.runs]
        named = [each for each in given if each.exists() or not has_magic(str(each))]
        found = list(named)
        for pattern in (each for each in given if each not in named):
            hits = [Path(hit) for hit in sorted(glob(str(pattern), recursive=True))]
            if not (runs := [hit for hit in hits if (hit / "config.toml").is_file()]):
                raise UserError(f"{pattern}: no run folder fits this pattern")
            found += [run for run in runs if run not in found]
        return found


@dataclass(frozen=True)
class Sample(Options):
    """Draw images from a trained model into one picture."""

    command: ClassVar[str] = "sample"
    run: Path = field(metadata=BY_PLACE)
    """The run's folder."""
    number: int = field(default=64, metadata={"least": 1, "short": ("-n",)})
    """How many images."""
    y: int | None = option(None, least=0)
    """The class of every image, for a model with classes; by default each class in turn."""
    out: Path | None = None
    """The picture's file (.png); by default RUN/samples.png."""
    seed: int = option(0, least=0, below=2**32)
    """The seed of the samples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is a GPU."""
    trust: bool = False
    """Run the Python files that the run uses (file.py:Name, module:Name) and with which you have
    not trained on this machine.
    """


@dataclass(frozen=True)
class Plot(Shown):
    """Draw a run's pictures again: reconstructions, samples, curves, the latent space, restored
    images.
    """

    command: ClassVar[str] = "plot"
    run: Path = field(metadata=BY_PLACE)
    """The run's folder."""
    pages: tuple[str, ...] = field(default=(), metadata=BY_PLACE)
    """Which pictures: reconstructions, samples, classes, curves, latent, manifold, interpolation,
    traversals, imputation or denoising; by default all that are possible for the run.
    """
    beside: tuple[Path, ...] = ()
    """The folders of other runs: draws one picture, with a column for each run and a row for each
    page.
    """
    out: Path | None = None
    """With --beside: the picture's file (.png); by default RUN/beside.png."""
    seed: int = option(0, least=0, below=2**32)
    """The seed of the samples in the pictures."""

    def check(self) -> None:
        """Raise a ``UserError`` where a type is wrong, or runs are given that don't make a picture
        side by side.
        """
        check_fields(self)
        if self.out is not None and not self.beside:
            raise UserError(
                "--out is for a picture of several runs side by side: give the other runs "
                "with --beside"
            )
        if len({each.expanduser().resolve() for each in (self.run, *self.beside)}) <= len(
            self.beside
        ):
            raise UserError("plot: a run folder is given twice")


@dataclass(frozen=True)
class Runs(Options):
    """Show the runs in a folder as a table: data, parts, log p(x) of the test set with its errors,
    the date and the duration.
    """

    command: ClassVar[str] = "runs"
    examples: ClassVar[tuple[str, ...]] = (
        "pyro-vae runs",
        'pyro-vae runs --where "guide=IAF" data=mnist --sort log_px',
    )
    folder: Path = field(default=Path("runs"), metadata=BY_PLACE)
    """The folder to search, with all folders in it; by default runs."""
    sort: str = "run"
    """An option of `train`, or log_px, se_mc, se_total, elbo, time, seconds: numbers are sorted
    from the largest, words from A to Z.
    """
    where: tuple[str, ...] = ()
    """Only runs with this value of an option: NAME=VALUE, such as "guide=IAF" (with any arguments).
    """
    json: bool = False
    """Print a JSON list, with all options and figures."""
    csv: bool = False
    """Print comma-separated values, with all options and figures."""


@dataclass(frozen=True)
class List(Options):
    """Show the parts that can be chosen, by slot."""

    command: ClassVar[str] = "list"
    slot: str | None = field(default=None, metadata=BY_PLACE)
    """One slot, such as guide; by default all."""
    json: bool = False
    """Print one JSON object: a list of parts for each slot."""


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


# ------------------------------------------------------------------------------------------
# Configuration files


def stored_names() -> list[str]:
    """The options of a training that its configuration keeps."""
    return [each.name for each in fields(Train) if each.name not in OF_THE_CALL]


def to_toml(options: Train) -> bytes:
    """The stored options as a TOML file that `read_config` reads; an option that is not given is
    left out.
    """
    import tomli_w

    return tomli_w.dumps(plain(options)).encode()


def plain(options: Train) -> dict[str, Any]:
    """The stored options that are given, as plain values."""
    values = {name: getattr(options, name) for name in stored_names()}
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in values.items()
        if value is not None
    }


def read_config(path: Path) -> dict[str, Any]:
    """The options in a TOML file, by their names (``batch_size`` or ``batch-size``), each of the
    right type.

    Raises:
        UserError: no such file, no TOML, an unknown option, or a value of another type.
    """
    return typed(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file; a ``UserError`` where it can't be read."""
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"{path}: cannot be read ({why}); expected a TOML file of options"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{path}: not valid TOML ({error}); write lines such as latent_dim = 20"
        ) from error


def typed(held: Mapping[str, Any], of: str) -> dict[str, Any]:
    """These options of a training by their names, each of the right type; ``of`` is where they are
    from, for messages.
    """
    values = {}
    for key, value in held.items():
        name = key.replace("-", "_")
        if name not in stored_names():
            raise UserError(f"{of}: {did_you_mean('option', key, stored_names())}")
        kinds = kinds_of(Train, name)
        value = Path(value) if Path in kinds and isinstance(value, str) else value
        limits = next(each.metadata for each in fields(Train) if each.name == name)
        if not any(is_a(value, kind) for kind in kinds):
            raise UserError(f"{of}: {key} = {value!r}: expected {expected(kinds, limits)}")
        values[name] = float(value) if isinstance(value, int) and float in kinds else value
    return values


def train_from(path: Path) -> Train:
    """A training's options from its config.toml, checked."""
    options = Train(**read_config(path))
    options.check()
    return options
