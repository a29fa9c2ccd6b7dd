"""`pyro-vae runs`: the runs of a folder, chosen and ordered."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pyro_vae.cli.entry import main
from pyro_vae.runs.config_file import to_toml
from pyro_vae.runs.options import Train

FOUR: dict[str, tuple[dict[str, Any], float | None]] = {
    "a": ({"guide": "IAF(depth=4)", "latent_dim": 2}, -80.5),
    "b": ({"guide": "MeanField", "data": "mnist"}, -79.25),
    "sweep/c": ({"guide": "IAF", "latent_dim": 2}, None),
}
"""Options and log p(x) of three runs, one of them not yet scored, and a fourth that is damaged."""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (options, log_px) in FOUR.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.toml").write_bytes(to_toml(Train(**options)))
        if log_px is not None:
            older = {"split": "test", "mean": log_px - 1}
            valid = {"split": "valid", "mean": 0.0}
            found = {"split": "test", "mean": log_px, "se_mc": 0.125, "num_samples": 50}
            results = {"training": {"seconds": 3.5}, "evaluations": [older, found, valid]}
            (folder / "results.json").write_text(json.dumps(results))
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.toml").write_text("guide = ")


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The runs' names, in their order."""
    assert main(["runs", *words, "--json"]) == 0
    return [Path(row["run"]).name for row in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["a", "b", "damaged", "c"]),
        (["--sort", "log_px"], ["b", "a", "damaged", "c"]),
        (["--sort", "guide", "--where", "latent-dim=2"], ["c", "a"]),
        (["--where", "guide=IAF"], ["a", "c"]),
        (["--where", "guide=IAF(depth=4)"], ["a"]),
        (["--where", "guide=IA"], []),
        (["--where", "guide=IAF", "latent_dim=2.0", "run=runs/a"], ["a"]),
        (["runs/sweep"], ["c"]),
    ],
)
def test_which_runs_in_which_order(
    words: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, *words) == names


def test_the_table_has_the_latest_figures_of_the_test_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("runs/a ")]
    assert all(word in line for word in ("digits", "IAF(depth=4)", "−80.50", "0.12", "3.50"))
    (note,) = [line for line in out.splitlines() if "can't be read" in line]
    assert "runs/damaged" in note and "TOML" in note


def test_csv_has_all_unrounded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--where", "data=mnist", "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["log_px"], row["se_mc"], row["draws"], row["elbo"]) == ("-79.25", "0.125", "50", "")
    assert row["num_samples"] == str(Train.num_samples) and row["guide"] == "MeanField"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "gide=IAF"], "did you mean 'guide'"),
        (["--where", "guide"], "expected NAME=VALUE"),
        (["--sort", "logpx"], "did you mean 'log_px'"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
