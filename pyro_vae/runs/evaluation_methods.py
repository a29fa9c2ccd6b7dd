"""The ways of `pyro-vae evaluate`: one row of a table a method, from a run's experiment to figures
and a headline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyro_vae.evaluation.ais import ais
from pyro_vae.evaluation.bdmc import bdmc
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.evaluation.refine import refine
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.options import Evaluate

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
    """One way: what to call, and on how many images where nobody says (None: all).

    ``divided``: several processes share the images out, and all have the outcome; else it is the
    first one's work.
    """

    call: Callable[[Experiment, Evaluate, int, int | None], Outcome]
    num_images: int | None = None
    divided: bool = False


def evaluate(experiment: Experiment, options: Evaluate, steps: int) -> Outcome:
    """The outcome of the method that ``options`` name; ``steps`` is for how long the pair was
    trained.
    """
    method = METHODS[options.method]
    number = options.num_images
    if number is None and method.num_images is not None:
        number = min(method.num_images, len(experiment.images(options.split, None)[0]))
    found = method.call(experiment, options, steps, number)
    return replace(found, figures={"method": options.method, **found.figures})


# ---------------------------------------------------------------------------------------------------------------------


def _importance(
    experiment: Experiment, options: Evaluate, steps: int, number: int | None
) -> Outcome:
    return _sampled(experiment, options, steps, number, options.proposal or "guide")


def _prior(experiment: Experiment, options: Evaluate, steps: int, number: int | None) -> Outcome:
    found = _sampled(experiment, options, steps, number, "prior")
    return replace(found, estimate=None, x=None)  # for teaching: no number to compare


def _sampled(
    experiment: Experiment, options: Evaluate, steps: int, number: int | None, proposal: str
) -> Outcome:
    x, words = experiment.images(options.split, number)
    result = log_marginal(
        experiment.model,
        experiment.guide,
        x,
        **experiment.fields(options.split, number),
        proposal=proposal,
        protocol={**words, **experiment.protocol(steps)},
        bits_offset=experiment.observed.bits_offset,
        **_given(options, "num_samples", "precision"),
    )
    known = experiment.accuracy(options.split, number)
    lines = [str(result), *(f"  {name} of q(y | x): {value:.2%}" for name, value in known.items())]
    figures = {**result.to_dict(), **known}
    return Outcome(figures, "\n".join(lines), options.split, result, x)


def _annealed(experiment: Experiment, options: Evaluate, steps: int, number: int | None) -> Outcome:
    x, words = experiment.images(options.split, number)
    result = ais(
        experiment.model,
        experiment.guide,
        x,
        **experiment.fields(options.split, number),
        protocol={**words, **experiment.protocol(steps)},
        bits_offset=experiment.observed.bits_offset,
        **_given(options, "num_steps", "num_chains"),
    )
    return Outcome(result.to_dict(), str(result), options.split, result, x)


def _bounds(experiment: Experiment, options: Evaluate, steps: int, number: int | None) -> Outcome:
    x, _ = experiment.images("test", 1)
    chosen: dict[str, Any] = {"size": number} if number is not None else {}
    given = _given(options, "num_steps", "num_chains")
    size = chosen.get("size", len(experiment.images("test", None)[0]))
    result = bdmc(
        experiment.model,
        experiment.guide,
        like=x,
        **chosen,
        **experiment.fields("test", size),
        **given,
    )
    known = experiment.protocol(steps)
    parts = {key: value for key, value in known.items() if key not in experiment.observed.protocol}
    result = replace(result, protocol={**parts, **result.protocol})
    return Outcome(result.to_dict(), str(result), SIMULATED)


def _refined(experiment: Experiment, options: Evaluate, steps: int, number: int | None) -> Outcome:
    x, words = experiment.images(options.split, number)
    said = {**words, **experiment.protocol(steps)}
    given = _given(options, "num_samples", "num_steps")
    fields = experiment.fields(options.split, number)
    result = refine(experiment.model, experiment.guide, x, protocol=said, **fields, **given)
    return Outcome(result.to_dict(), str(result), options.split)


def _given(options: Evaluate, *names: str) -> dict[str, Any]:
    """The options of every method, and those of ``names`` that were given: the function's own
    defaults serve for the others.
    """
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    common = {"seed": options.seed, "device": options.device, "compile": options.compile}
    return {**common, "progress": not options.quiet, **chosen}


METHODS: dict[str, Method] = {
    "iw": Method(_importance, divided=True),
    "ais": Method(_annealed, 100),
    "bdmc": Method(_bounds, 100),
    "refine": Method(_refined, 100),
    "prior": Method(_prior, divided=True),
}
