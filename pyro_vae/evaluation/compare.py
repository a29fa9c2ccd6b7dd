"""Model comparison: paired differences of log p(x) with standard errors, and stacking weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite, isnan, nan
from typing import TYPE_CHECKING, Any, ClassVar

from pyro_vae.errors import UserError
from pyro_vae.evaluation.arviz_compat import paired_differences, stacking_weights
from pyro_vae.evaluation.observed import refuse_other_data
from pyro_vae.formatting import Result, quantity, shorten
from pyro_vae.table import Table

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

    from pyro_vae.evaluation.result import LogMarginal

OBSERVATIONS = ("observation", "binarization", "dequantization")
"""Words of the protocol that say how x came from the stored images."""

NOTABLE_BIAS = 0.5
"""The difference of two biases, relative to that of the means, from which the latter may be the
former's work.
"""


@dataclass(frozen=True)
class Row:
    """One model; nats per image."""

    name: str
    mean: float
    se_mc: float
    se_total: float
    difference: float  # mean − the best one's mean: 0 for the best, negative for the others
    se_difference: float  # sd of the images' differences / √N
    z: float  # difference / se_difference; NaN where both are 0
    weight: float  # in the stacked mixture
    high_khat: float  # share of images with k̂ > 0.7
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison(Result):
    """Models on the same images, from the best to the worst; ``print`` shows a table.

    Attributes:
        rows: a `Row` for each model.
        num_images: N.
        protocol: what all estimates have in common.
        notes: remarks on the comparison itself.
    """

    figures: ClassVar[tuple[str, ...]] = ("rows", "num_images", "protocol", "warnings")

    rows: tuple[Row, ...]
    num_images: int
    protocol: dict[str, Any]  # what all estimates have in common
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the differences are to be read, then the warnings of each model."""
        return (*self.notes, *(f"{row.name}: {text}" for row in self.rows for text in row.warnings))

    def table(self) -> Table:
        """A row for each model; below it what all models share, and the warnings."""
        shared = [f"{k} {shorten(v)}" for k, v in self.protocol.items() if k in _SHOWN]
        notes = (
            "nats; ± paired: standard error of the difference over the N that were scored",
            "; ".join([f"N = {self.num_images}", *shared]),
            *(f"warning: {text}" for text in self.warnings),
        )
        columns = ("", quantity(self.protocol), *_HEADER)
        return Table(columns, tuple(map(_cells, self.rows)), notes=notes)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a model, from the best to the worst, its name as the index."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows]).set_index("name")


def compare(results: Mapping[str, LogMarginal]) -> Comparison:
    """Compare models by log p(x) of the same images, with paired standard errors.

    The standard error of a difference is that of the images' differences, so that what makes an
    image hard for every model cancels. The weights are those of stacking: of the mixture of these
    models with the largest Σ log p(x).

    Example::

        a = pv.log_marginal(model, guide, x, num_samples=50)
        b = pv.log_marginal(model, guide, x, num_samples=200, seed=1)
        print(pv.compare({"few draws": a, "more": b}))

    Args:
        results: name -> `LogMarginal`, or another result with figures of the same names.

    Returns:
        A `Comparison`: a row for each model, the best first; nats per image.

    Raises:
        UserError: fewer than two results, or results that can't be compared: of different
            quantities (log p(x, y) and log p(x | y)), images, conditions, binarizations; a density
            and a mass; log p(x) that is not finite.

    Reference:
        Yao et al. 2018, "Using Stacking to Average Bayesian Predictive Distributions" (weights);
        Vehtari, Gelman and Gabry 2017, "Practical Bayesian Model Evaluation" (standard error of a
        difference).
    """
    if len(results) < 2:
        raise UserError(f"compare takes two or more results by name, got {len(results)}")
    for first, second in combinations(results, 2):
        _refuse(first, results[first], second, results[second])
    log_px = {name: result.log_px.detach().double().cpu() for name, result in results.items()}
    for name, values in log_px.items():
        if bool((wrong := ~values.isfinite()).any()):
            image = int(wrong.nonzero()[0])
            raise UserError(
                f"{name!r}: log p(x) of image {image} is {float(values[image])}: this can't be "
                "compared"
            )
    pointwise = {name: values.numpy() for name, values in log_px.items()}
    differences, weights = paired_differences(pointwise), stacking_weights(pointwise)
    rows = tuple(
        _row(name, results[name], *differences[name], weights[name]) for name in differences
    )
    common = dict.fromkeys(key for result in results.values() for key in result.protocol)
    protocols = [result.protocol for result in results.values()]
    shared = {
        k: protocols[0].get(k)
        for k in common
        if all(k in p and p[k] == protocols[0].get(k) for p in protocols)
    }
    shared["quantity"] = quantity(protocols[0])
    return Comparison(rows, len(next(iter(log_px.values()))), shared, tuple(_notes(rows, results)))


def _row(name: str, result: LogMarginal, difference: float, error: float, weight: float) -> Row:
    z = (
        difference / error
        if error > 0
        else (nan if difference == 0 or isnan(error) else -float("inf"))
    )
    high = float(getattr(result, "high_khat", nan))
    figures = result.mean, result.se_mc, result.se_total
    return Row(name, *figures, difference, error, z, weight, high, tuple(result.warnings))


# ------------------------------------------------------------------------------------------
# What can't be compared


def _refuse(name: str, first: LogMarginal, other: str, second: LogMarginal) -> None:
    """Raise where the two are not estimates of the same quantity at the same images."""
    if len(first.log_px) != len(second.log_px):
        raise UserError(
            f"{name!r} has {len(first.log_px)} images and {other!r} has {len(second.log_px)}: "
            "evaluate both on the same images"
        )
    a, b = first.protocol, second.protocol
    for key in OBSERVATIONS:
        if key in a and key in b and _words(a[key]) != _words(b[key]):
            raise UserError(
                f"{name!r} is of {key} {_words(a[key])!r} and {other!r} of {_words(b[key])!r}: "
                "their log p(x) are of different x. Evaluate both on the same x"
            )
    refuse_other_data(name, a, other, b)
    if a.get("kind") != b.get("kind"):
        kinds = [protocol.get("kind") or "unknown" for protocol in (a, b)]
        raise UserError(
            f"{name!r} has kind {kinds[0]} and {other!r} {kinds[1]}: a density and a mass (a "
            "probability of discrete values) can't be compared. Compare likelihoods of one kind"
        )


def _words(observation: Any) -> str:
    """Whether ``--binarize`` was given or chosen by itself changes no x, nor does the number of
    levels of which a stored one is one.
    """
    words = str(observation).removesuffix(" (auto)")
    return "whole numbers as stored" if words.startswith("integer levels 0 to ") else words


def _notes(rows: tuple[Row, ...], results: Mapping[str, LogMarginal]) -> list[str]:
    """Where a difference may be the estimators' and not the models'."""
    notes = []
    said = [result.protocol for result in results.values()]
    for name, result in results.items():
        known = result.protocol
        if "scored" not in known and (
            known.get("given") or any("scored" in protocol for protocol in said)
        ):
            notes.append(
                f"{name} is an old result with a digest of x alone, so its other observed "
                "values and conditions can't be checked: evaluate it again"
            )
    for key in ("estimator", "proposal"):
        if len(how := sorted({str(protocol[key]) for protocol in said if key in protocol})) > 1:
            notes.append(
                f"the {key}s differ ({', '.join(how)}): for the same model the looser bound is "
                "lower"
            )
    ignored = [name for name, result in results.items() if result.protocol.get("scales")]
    if ignored and len(ignored) < len(results):
        notes.append(
            f"{', '.join(ignored)}: scored with ignore_scales=True, so without the "
            "poutine.scale of its programs; the other results include it"
        )
    best = float(getattr(results[rows[0].name], "bias", nan))
    for row in rows[1:]:
        gap = float(getattr(results[row.name], "bias", nan)) - best
        if abs(gap) > max(NOTABLE_BIAS * abs(row.difference), 1e-3):
            notes.append(
                f"{row.name} is {_figure(row.difference)} nats from {rows[0].name}, and their "
                f"estimated biases are {abs(gap):.3f} apart: use more draws before you trust "
                "that difference"
            )
    return notes


# ------------------------------------------------------------------------------------------
# The table

_HEADER = ("± MC", "± test set", "difference", "± paired", "z", "weight", "k̂ > 0.7")
_SHOWN = (
    "data",
    "split",
    "images",
    "observation",
    "binarization",
    "levels",
    "kind",
    "estimator",
    "scales",
    "sha256",
)


_DIGITS = {"mean": 2, "se_mc": 3, "se_total": 2, "difference": 3, "se_difference": 3, "z": 1}


def _cells(row: Row) -> tuple[str, ...]:
    figures = (_figure(getattr(row, name), digits) for name, digits in _DIGITS.items())
    high = f"{row.high_khat:.1%}" if isfinite(row.high_khat) else "–"
    return row.name, *figures, _figure(row.weight), high


def _figure(value: float, digits: int = 3) -> str:
    if isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−" if float(text) else "")  # no −0.000
