"""The methods of `pyro-vae evaluate`: a table with one row for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor

from pyro_vae.evaluation.ais import ais
from pyro_vae.evaluation.bdmc import bdmc
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.evaluation.refine import refine
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.runs.command_options import OF_METHODS, Evaluate
from pyro_vae.runs.experiment import Experiment

SIMULATED = "simulated"
"""In the place of a split, where the images are the model's own."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an evaluation found."""

    figures: dict[str, Any]  # what --json prints and results.json keeps
    headline: str
    split: str
    estimate: LogMarginal | None = (
        None  # log p(x) of each image, where that may be compared between runs
    )
    x: Tensor | None = None  # those images


@dataclass(frozen=True)
class Method:
    """One way: an estimator, which takes its own options of `evaluate` beside those of all.

    ``num_images``: on how many where nobody says (None: all). ``divided``: several processes share
    the images out, and all have the outcome; else it is the first one's work. ``compared``: its
    estimates may be compared between runs. ``simulated``: the images are the model's own.
    """

    estimator: Callable[..., Estimate]
    num_images: int | None = None
    divided: bool = False
    compared: bool = False
    simulated: bool = False

    def __call__(
        self, experiment: Experiment, options: Evaluate, steps: int, number: int | None
    ) -> tuple[Estimate, Any]:
        """The estimate, and the images that it is of; defaults are the estimator's own."""
        given = {"seed": options.seed, "device": options.device, "compile": options.compile}
        own = {name: getattr(options, name) for name in OF_METHODS}  # None where it is not its own
        given |= {name: value for name, value in own.items() if value is not None}
        given |= experiment.fields(options.split, number)
        pair, progress = (experiment.model, experiment.guide), not options.quiet
        known = experiment.protocol(steps)
        x, words = experiment.images(options.split, 1 if self.simulated else number)
        if self.simulated:
            of_data = experiment.observed.protocol
            said = {key: value for key, value in known.items() if key not in of_data}
            given |= {"size": number, "like": x}
            found = self.estimator(*pair, progress=progress, **given)
            return replace(found, protocol={**said, **found.protocol}), x
        if "bits_offset" in signature(self.estimator).parameters:
            given["bits_offset"] = experiment.observed.bits_offset
        said = {**words, **known}
        return self.estimator(*pair, x, progress=progress, protocol=said, **given), x


def evaluate(experiment: Experiment, options: Evaluate, steps: int) -> Outcome:
    """The outcome of the method that ``options`` name; ``steps`` is for how long the pair was
    trained.
    """
    method = METHODS[options.method]
    number = options.num_images
    if number is None and method.num_images is not None:
        number = min(method.num_images, len(experiment.images(options.split, None)[0]))
    found, x = method(experiment, options, steps, number)
    kept = (found, x) if method.compared and isinstance(found, LogMarginal) else (None, None)
    split = SIMULATED if method.simulated else options.split
    of_class = {} if method.simulated else experiment.accuracy(options.split, number)
    figures = {"method": options.method, **found.to_dict(), **of_class}
    lines = [str(found), *(f"  {what} of q(y | x): {part:.2%}" for what, part in of_class.items())]
    return Outcome(figures, "\n".join(lines), split, *kept)


METHODS: dict[str, Method] = {
    "iw": Method(log_marginal, divided=True, compared=True),
    "ais": Method(ais, 100, compared=True),
    "bdmc": Method(bdmc, 100, simulated=True),
    "refine": Method(refine, 100),
    # for teaching: no number to compare
    "prior": Method(partial(log_marginal, proposal="prior"), divided=True),
}
