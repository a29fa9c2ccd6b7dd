"""The options of the commands on trained runs: one dataclass a command, as in `runs.options`."""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any, ClassVar, Literal

from pyro_vae.errors import UserError
from pyro_vae.runs.options import BY_PLACE, Options, Train
from pyro_vae.training.settings import (
    check_fields,
    option,
)


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
