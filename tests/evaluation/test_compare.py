"""Comparison: paired errors by hand, weights that do not underflow, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation.compare import Comparison, compare
from pyro_vae.evaluation.result import LogMarginal

KNOWN = {
    "sha256": "a" * 64,
    "kind": "mass",
    "observation": "dynamic binarization",
    "estimator": "IW-100",
}


def result(log_px: Tensor, se: float = 0.01, **protocol: Any) -> LogMarginal:
    """An estimate with these log p(x); ``None`` takes a word out of the protocol."""
    same = torch.full_like(log_px, 1.0)
    said = {key: value for key, value in {**KNOWN, **protocol}.items() if value is not None}
    return LogMarginal(
        log_px=log_px,
        se=same * se,
        ess=same * 90,
        khat=torch.linspace(0.0, 1.0, len(log_px)),
        elbo_px=log_px - 1,
        max_weight_share=same * 0.1,
        debiased_px=log_px,
        curve={
            10: float(log_px.mean()) - 0.02,
            50: float(log_px.mean()),
            100: float(log_px.mean()),
        },
        num_samples=100,
        protocol=said,
    )


def three(level: float = -100.0, number: int = 200) -> dict[str, Tensor]:
    """Three models of the same images; what makes an image hard is common to them."""
    random = torch.Generator().manual_seed(2)
    hard = 20 * torch.randn(number, generator=random, dtype=torch.float64)
    own = {"a": 0.0, "b": 0.2, "c": -1.0}
    return {
        k: level + hard + v + torch.randn(number, generator=random, dtype=torch.float64)
        for k, v in own.items()
    }


def table(level: float = -100.0) -> Comparison:
    return compare({name: result(values) for name, values in three(level).items()})


def test_the_paired_error_is_the_sd_of_the_differences_over_root_n() -> None:
    values = three()
    best, *others = table().rows
    assert (best.name, best.difference, best.se_difference) == ("b", 0.0, 0.0)
    for row in others:
        difference = values[row.name] - values["b"]
        assert row.difference == pytest.approx(float(difference.mean()), rel=1e-9)
        assert row.se_difference == pytest.approx(float(difference.std() / 200**0.5), rel=1e-9)
        assert row.z == pytest.approx(row.difference / row.se_difference)
        assert row.se_difference < row.se_total / 5  # what is common to the models has cancelled


def test_rows_hold_the_estimates_own_figures_from_best_to_worst() -> None:
    found = table()
    assert [row.name for row in found.rows] == ["b", "a", "c"]
    for row in found.rows:
        own = result(three()[row.name])
        assert (row.mean, row.se_mc, row.se_total, row.high_khat) == (
            own.mean,
            own.se_mc,
            own.se_total,
            own.high_khat,
        )
    assert sum(row.weight for row in found.rows) == pytest.approx(1.0)


def test_identical_results_differ_by_nothing() -> None:
    values = three()["a"]
    for row in compare({"one": result(values), "other": result(values)}).rows:
        assert (row.difference, row.se_difference) == (0.0, 0.0)
        assert row.z != row.z  # 0/0


def test_a_constant_shift_is_certain() -> None:
    values = three()["a"]
    worse = compare({"one": result(values), "other": result(values - 0.5)}).rows[1]
    assert worse.difference == pytest.approx(-0.5) and worse.se_difference < 1e-9 and worse.z < -1e6


@pytest.mark.parametrize("level", [-2000.0, -100_000.0, 3000.0])
def test_weights_depend_on_differences_alone(level: float) -> None:
    """exp(log p) underflows below −745, and overflows for densities: weights are those of the same
    numbers near 0.
    """
    expected = {row.name: row.weight for row in table(0.0).rows}
    found = {row.name: row.weight for row in table(level).rows}
    assert found == pytest.approx(expected, abs=1e-4)
    assert 0.05 < expected["a"] < 0.95


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"sha256": "b" * 64}, "sha256"),
        ({"sha256": None}, "unknown"),
        ({"kind": "density"}, "density"),
        ({"kind": None}, "unknown"),
        ({"observation": "binarized at the threshold 1/2"}, "threshold"),
    ],
)
def test_results_of_different_things_are_refused_by_name(
    changed: dict[str, Any], word: str
) -> None:
    values = three()
    with pytest.raises(UserError, match=word) as refusal:
        compare({"first": result(values["a"]), "second": result(values["b"], **changed)})
    line = str(refusal.value)
    assert "'first'" in line and "'second'" in line and "\n" not in line


def test_different_numbers_of_images_are_refused() -> None:
    values = three()["a"]
    with pytest.raises(UserError, match=r"'first' has 200 images and 'second' has 199"):
        compare({"first": result(values), "second": result(values[1:])})


def test_one_result_or_one_that_is_not_finite_is_refused() -> None:
    values = three()["a"]
    with pytest.raises(UserError, match="two or more"):
        compare({"only": result(values)})
    broken = values.clone()
    broken[7] = -torch.inf
    with pytest.raises(UserError, match=r"'second': log p\(x\) of image 7"):
        compare({"first": result(values), "second": result(broken)})


@pytest.mark.parametrize(
    "changed", [{"kind": None}, {"sha256": None}, {"kind": None, "observation": None}]
)
def test_what_neither_knows_is_no_difference(changed: dict[str, Any]) -> None:
    values = three()
    assert (
        len(
            compare({"a": result(values["a"], **changed), "b": result(values["b"], **changed)}).rows
        )
        == 2
    )


def test_an_observation_chosen_by_itself_is_the_one_asked_for() -> None:
    values = three()
    compare(
        {
            "a": result(values["a"]),
            "b": result(values["b"], observation="dynamic binarization (auto)"),
        }
    )


def test_what_may_be_the_estimators_work_is_said() -> None:
    values = three()
    close = compare(
        {"a": result(values["a"]), "b": result(values["a"] - 0.01, se=0.5, estimator="IW-10")}
    )
    assert [
        word in " ".join(close.notes)
        for word in ("estimators differ (IW-10, IW-100)", "biases are 0.125 apart")
    ]
    assert any(text.startswith("b: estimated bias") for text in close.warnings)
    assert not table().warnings


@pytest.mark.parametrize("apart", [0.2, 0.01, 0.0])
@pytest.mark.parametrize("lower", ["the worse", "the better"])
def test_biases_that_are_half_a_difference_apart_are_said(lower: str, apart: float) -> None:
    """On both sides of a half, and of a thousandth of a nat; whichever of the two has the larger
    bias.
    """
    values, least = three()["a"], max(0.5 * apart, 1e-3)
    for factor, said in ((0.95, False), (1.05, True), (9.0, True)):
        errors = [0.3, (0.3**2 + 2 * factor * least) ** 0.5]  # the biases are −se²/2
        better, worse = errors if lower == "the worse" else reversed(errors)
        found = compare({"a": result(values, better), "b": result(values - apart, worse)})
        assert [row.name for row in found.rows] == ["a", "b"]
        assert any("biases are" in note for note in found.notes) == said


@pytest.mark.parametrize("key", ["estimator", "proposal"])
def test_what_they_were_estimated_by_is_said_where_it_differs(key: str) -> None:
    values = three()["a"]
    alike = {"a": result(values, **{key: "one"}), "b": result(values, **{key: "one"})}
    assert not compare(alike).notes
    (note,) = compare({**alike, "c": result(values, **{key: "other"})}).notes
    assert f"{key}s differ (one, other)" in note


def test_the_table_is_aligned_and_the_dict_is_json() -> None:
    found = compare({"a": result(three()["a"]), "a longer name": result(three()["c"])})
    head, *rows = str(found).splitlines()[:3]
    seen = [len(line.replace("\u0302", "")) for line in (head, *rows)]  # k̂ takes one cell
    assert seen[0] == seen[1] == seen[2]
    end = head.index("difference") + len("difference")
    assert rows[1][:end].endswith(f"{found.rows[1].difference:.3f}".replace("-", "−"))
    again = json.loads(json.dumps(found.to_dict()))
    assert [row["name"] for row in again["rows"]] == ["a", "a longer name"]
    assert again["num_images"] == 200 and again["protocol"]["kind"] == "mass"
    frame = found.to_dataframe()
    assert list(frame.index) == ["a", "a longer name"] and frame.loc["a", "difference"] == 0.0


def test_one_image_has_differences_and_no_errors() -> None:
    worse = compare({"a": result(torch.tensor([-3.0])), "b": result(torch.tensor([-4.0]))}).rows[1]
    assert worse.difference == pytest.approx(-1.0) and worse.se_difference != worse.se_difference
