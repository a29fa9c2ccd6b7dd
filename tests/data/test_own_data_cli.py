"""Own data on the command line: what is said of them, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyro_vae.cli.entry import main

QUICK = [
    *("--steps", "2", "--latent-dim", "2", "--net", "MLP(hidden=3)", "--num-samples", "2"),
    *("--batch-size", "16", "--compile", "off", "--device", "cpu"),
]
LABELLED = ["--model", "ClassConditional", "--guide", "ClassConditional"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(30) % 10 - 1, "image 0 is of class -1, but the classes are numbered from 0"),
        (np.arange(30) * 10**8, "the labels go up to 2900000000, more classes than the 30 images"),
    ],
    ids=["negative", "identifiers"],
)
def test_labels_are_checked_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: np.ndarray, words: str
) -> None:
    """One line for programs that take the class; the others train."""
    file, out = str(tmp_path / "x.npz"), str(tmp_path / "run")
    np.savez(file, images=np.random.default_rng(0).random((30, 4, 4)) < 0.5, labels=labels)
    assert main(["train", "--data", file, *LABELLED, *QUICK, "--quiet", "--out", out]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not Path(out).exists()
    assert main(["train", "--data", file, *QUICK, "--quiet", "--no-pictures", "--out", out]) == 0


def test_a_table_has_no_pages_of_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows and features are told; the curves and the latent space, under the classes' names,
    are drawn.
    """
    random = np.random.default_rng(0)
    lines = [f"{a:.3f},{b:.3f},{c:.3f},{'xyz'[i % 3]}" for i, (a, b, c) in
             enumerate(random.normal(size=(60, 3)))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,kind", *lines]))
    out = tmp_path / "run"
    arguments = ["--data", str(tmp_path / "t.csv"), "--label", "kind", "--likelihood", "Gaussian"]
    assert main(["train", *arguments, *QUICK, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "t.csv: 48 train and 12 test rows of 3 features, floats, 3 classes" in said
    assert sorted(each.stem for each in out.glob("*.png")) == ["curves", "evaluation", "latent"]
    assert "an image" not in said and "per image" not in said
    assert main(["plot", str(out), "samples"]) == 2
    assert "t.csv is a table: its rows are not images" in capsys.readouterr().err


def test_a_table_that_no_network_can_take_is_told_to_be_scaled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As tables come: one feature in grams, another in years."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 5)) * 1e6)
    arguments = ["--data", str(tmp_path / "x.npy"), "--likelihood", "Gaussian", *QUICK]
    assert main(["train", *arguments, "--quiet", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "scale the data" in error and error.count("\n") == 1
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 5)) * 100)
    hot = [*arguments, "--learning-rate", "1e30", "--quiet", "--out", str(tmp_path / "hot")]
    assert main(["train", *hot]) == 1  # a loss that is not finite
    assert "the values go up to" in capsys.readouterr().err
