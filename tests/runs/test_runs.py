"""A run's folder holds all that is needed to have the trained pair again, and is never written
over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.entry import main
from pyro_vae.errors import UserError
from pyro_vae.runs import run_folder
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.config_file import read_config, to_toml, train_from
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train
from pyro_vae.runs.provenance import environment
from pyro_vae.training import checkpoint_files

SMALL = [
    "--net",
    "MLP(hidden=16)",
    "--latent-dim",
    "3",
    "--num-samples",
    "20",
    "--eval-images",
    "50",
    "--quiet",
]
SHORT = [*SMALL, "--steps", "25", "--compile", "off", "--no-pictures"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One finished run, for looking at."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", *SHORT, "--out", str(folder / "run")]) == 0
    finally:
        os.chdir(before)
    yield folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, for spoiling."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(call: Any, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def remove_digests(run: Path) -> None:
    for path in run.glob("checkpoints/*.sha256"):
        path.unlink()


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_files_of_a_run(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    files = {"config.toml", "environment.json", "metrics.jsonl", "results.json", "per_image.csv"}
    assert names == {*files, "checkpoints", "evaluations"}
    rows = run_folder.open_run(trained).rows()
    assert [row["epoch"] for row in rows] == [1, 2]  # 25 steps of 11 an epoch
    assert rows[-1]["step"] == 25
    for row in rows:
        for part in ("train", "valid"):
            figures = row[part]
            assert figures["elbo"] == pytest.approx(figures["reconstruction"] - figures["kl"])


def test_the_environment_names_no_folder_user_or_host(trained: Path) -> None:
    text = (trained / "environment.json").read_text()
    held = json.loads(text)
    assert held["packages"]["torch"] and held["python"] and held["threads"] and held["device"]
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text and str(Path.cwd()) not in text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--data=/home/me/x.npz", "--data=x.npz"),
        ("/usr/bin/pyro-vae", "pyro-vae"),
        ("data/x.npz", "data/x.npz"),
        ("~/x.npz", "x.npz"),
        ("Mine(file='/home/me/a b/x.pt')", "Mine(file='x.pt')"),
        ("/home/me/parts.py:Mine(depth=2)", "parts.py:Mine(depth=2)"),
        ("Gaussian(scale=learned)", "Gaussian(scale=learned)"),
    ],
)
def test_absolute_folders_are_left_out_of_the_command(word: str, expected: str) -> None:
    assert environment(torch.device("cpu"), [word])["command"] == [expected]


def test_load_gives_the_trained_pair(trained: Path) -> None:
    model, guide = pv.load(trained)
    again, guide_again = run_folder.load(str(trained))
    held = checkpoint_files.load(checkpoint_files.latest(trained / "checkpoints"))
    for name, program in (("model", model), ("guide", guide)):
        assert not program.training
        state = program.state_dict()
        assert state.keys() == held.sections[name].keys()
        assert all(torch.equal(value, held.sections[name][key]) for key, value in state.items())
    x = prepare(train_from(trained / "config.toml")).observed.x_test[:20]
    weights = []
    for pair in ((model, guide), (again, guide_again)):
        torch.manual_seed(1)
        weights.append(pv.log_weights(*pair, x, num_particles=4))
    assert torch.equal(*weights)


def test_load_gives_the_number_that_was_printed(trained: Path) -> None:
    """The whole way round: the loaded pair has, on the same images and draws, the log p(x) that the
    training ended with.
    """
    experiment = prepare(train_from(trained / "config.toml"))
    x, _ = experiment.images("test", 50)
    model, guide = pv.load(trained)
    result = pv.log_marginal(model, guide, x, num_samples=20, seed=0, compile="off")
    printed = json.loads((trained / "results.json").read_text())["evaluations"][0]
    assert printed["mean"] == pytest.approx(result.mean, abs=1e-6)
    assert printed["protocol"]["sha256"] == result.protocol["sha256"]


def test_the_validation_figures_are_of_the_images_that_evaluate_has(trained: Path) -> None:
    """The ELBO that `fit` recorded and that of the importance draws agree: both sets were observed
    once, by the same draw.
    """
    experiment = prepare(train_from(trained / "config.toml"))
    x, _ = experiment.images("valid", None)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    result = pv.log_marginal(*pv.load(trained), x, num_samples=200, compile="off")
    recorded = run_folder.open_run(trained).rows()[-1]["valid"]["elbo"]
    assert abs(recorded - result.elbo) < 1.0


def test_load_neither_reads_nor_moves_the_random_state(trained: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pv.load(trained)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_initial_parameters_depend_on_the_seed_alone() -> None:
    def first(seed: int) -> torch.Tensor:
        torch.rand(3)
        model, _ = build_pair(Train(seed=seed, net="MLP(hidden=4)"), (1, 8, 8), 100)
        return next(model.parameters()).detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_another_seed_has_the_same_images() -> None:
    one, other = (prepare(Train(seed=seed, net="MLP(hidden=4)")) for seed in (0, 1))
    assert torch.equal(one.observed.x_test, other.observed.x_test)
    assert torch.equal(one.train_rows, other.train_rows)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.toml").unlink(), ["config.toml"]),
        (lambda run: (run / "config.toml").write_text("latent_dim = ["), ["config.toml", "TOML"]),
        (
            lambda run: (run / "config.toml").write_text("latent_dmi = 3"),
            ["did you mean 'latent_dim'"],
        ),
        (
            lambda run: change(run / "config.toml", "latent_dim = 3", "latent_dim = 4"),
            ["config.toml", "latent_dim is 4 there and 3"],
        ),
        (lambda run: shutil.rmtree(run / "checkpoints"), ["no checkpoint"]),
        (lambda run: remove_digests(run), ["3 checkpoints without their SHA-256: best-"]),
        (
            lambda run: [path.write_bytes(b"x") for path in run.glob("checkpoints/*.pt")],
            [".pt", "damaged"],
        ),
    ],
)
def test_a_broken_run_is_refused(run: Path, spoil: Any, words: list[str]) -> None:
    spoil(run)
    refused(lambda: run_folder.load(run), *words)


def test_a_damaged_last_checkpoint_is_passed_over_with_a_warning(run: Path) -> None:
    first, last = checkpoint_files.complete(run / "checkpoints")
    last.write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{last.name}.*damaged.*{first.name}, is used"):
        model, _ = pv.load(run)
    held = checkpoint_files.load(first)
    assert all(
        torch.equal(value, held.sections["model"][key]) for key, value in model.state_dict().items()
    )


def test_a_last_checkpoint_without_its_digest_is_told_by_all(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is taken, with its line: by `load`, `evaluate`, `sample`, `compare` and a
    resume, which loses nothing.
    """
    monkeypatch.chdir(run.parent)
    shutil.copytree(run, "other")
    first, last = checkpoint_files.complete(run / "checkpoints")
    checkpoint_files.manifest(last).unlink()
    content = last.read_bytes()
    line = f"{last.name}: its SHA-256 ({last.name}.sha256) is missing, so it can't be checked: the previous one, {first.name}, is"
    with pytest.warns(UserWarning) as warned:
        pv.load(run)
    assert [line in str(each.message) for each in warned] == [True]
    few = ["--num-samples", "5", "--num-images", "5", "--no-pictures", "--quiet"]
    for command in (
        ["evaluate", "run", *few],
        ["sample", "run"],
        ["compare", "run", "other", *few[:4], "--quiet"],
    ):
        assert main(command) == 0
        assert line in capsys.readouterr().err, command
    assert main(["compare", "run", "other", *few[:4], "--quiet"]) == 0  # of what is stored
    assert capsys.readouterr().err.count(line) == 1
    (run / "results.json").unlink()
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert line in capsys.readouterr().err
    aside = last.with_name(f"{last.name}.superseded")
    assert (
        content in [path.read_bytes() for path in (last, aside) if path.is_file()]
        and first.is_file()
    )


def test_rows_and_a_record_that_are_not_the_checkpoints_are_kept(run: Path) -> None:
    """metrics.jsonl is written as the checkpoint has it, and environment.json goes on; what else
    they had stays.
    """
    opened = run_folder.open_run(run)
    rows, text = opened.rows(), opened.metrics_file.read_bytes()
    opened.write_rows(rows)
    assert opened.metrics_file.read_bytes() == text and not list(run.glob("*.superseded"))
    for number, more in enumerate([b'{"epoch": 3}\n{"epoch": 4, "st', b"\xff\xfe mine\n"], 1):
        opened.metrics_file.write_bytes(text + more)
        opened.write_rows(rows)
        assert opened.metrics_file.read_bytes() == text
        assert len((run / "metrics.jsonl.superseded").read_bytes().splitlines()) == 2 * number - (
            number == 2
        )
    opened.environment_file.write_text("{}, damaged")
    opened.resumed(torch.device("cpu"))
    assert (run / "environment.json.damaged").read_text() == "{}, damaged"
    assert len(json.loads(opened.environment_file.read_text())["resumed"]) == 1


@pytest.mark.parametrize("content", [b"\xff\xfegarbage", None])
def test_metrics_that_cannot_be_read_are_named(content: bytes | None, run: Path) -> None:
    opened = run_folder.open_run(run)
    opened.metrics_file.unlink()
    if content is None:
        opened.metrics_file.mkdir()
    else:
        opened.metrics_file.write_bytes(content)
    refused(opened.rows, "metrics.jsonl", "damaged")


def test_the_best_checkpoint_can_be_loaded(run: Path) -> None:
    rows = run_folder.open_run(run).rows()
    best = max(rows, key=lambda row: row["valid"]["elbo"])
    held = checkpoint_files.newest(run / "checkpoints", best=True).held
    assert (held.metadata["epoch"], held.metadata["elbo"]) == (best["epoch"], best["valid"]["elbo"])
    model, _ = pv.load(run, "best")
    assert all(
        torch.equal(value, held.sections["model"][key]) for key, value in model.state_dict().items()
    )
    refused(lambda: pv.load(run, "bset"), "did you mean 'best'")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--steps 50", "steps is 25, not 50"),
        ("--learning-rate 0.1 --seed 3", "learning_rate is 0.001, not 0.1; seed is 0, not 3"),
        ("--guide FullRank", "guide is MeanField, not FullRank"),
        ("--out elsewhere", "leave --out out"),
        ("--config run/config.toml", "leave --config out"),
        ("--quiet --compile graph", "complete"),
    ],
)
def test_what_a_resume_may_not_change(
    line: str,
    words: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["train", "--resume", "run", *line.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda run: change(run / "config.toml", "learning_rate = 0.001", "learning_rate = 0.5"),
            ["learning_rate is 0.5 there"],
        ),
        (
            lambda run: change(run / "config.toml", "data_seed = 0", "data_seed = 1"),
            ["data_seed is 1 there and 0"],
        ),
        (
            lambda run: [path.write_bytes(b"x") for path in run.glob("checkpoints/*.pt")],
            [".pt", "damaged"],
        ),
        (
            lambda run: (run / "config.toml").unlink(),
            ["there is no run in this folder", "config.toml"],
        ),
        (
            remove_digests,
            ["3 checkpoints without their SHA-256: best-", "step-000000025.pt", "sha256sum"],
        ),
        (
            lambda run: shutil.rmtree(run / "checkpoints"),
            ["no checkpoint in checkpoints, but 2 epochs in metrics.jsonl"],
        ),
        (
            lambda run: [path.unlink() for path in run.glob("checkpoints/step-*")],
            ["no checkpoint in it but the best one"],
        ),
        (lambda run: (run / "checkpoints").rename(run / "elsewhere"), ["restore the folder"]),
    ],
)
def test_a_run_that_is_not_what_it_was_is_not_resumed(
    run: Path, spoil: Any, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "results.json").unlink()  # as if its evaluation had been stopped
    spoil(run)
    before = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != ".run.lock"
    }
    assert main(["train", "--resume", str(run), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != ".run.lock"
    } == before


def test_a_stopped_evaluation_is_resumed_without_a_step(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run / "results.json").read_text())
    metrics, trained = (run / "metrics.jsonl").read_text(), run_folder.open_run(run).trained()
    (run / "results.json").unlink()
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    after = json.loads((run / "results.json").read_text())
    for evaluation in (*before["evaluations"], *after["evaluations"]):
        for own in ("time", "seconds", "commit"):
            evaluation.pop(own)
    assert (
        after["evaluations"] == before["evaluations"]
        and (run / "metrics.jsonl").read_text() == metrics
    )
    assert run_folder.open_run(run).trained() == trained


def test_no_run_at_all_suggests_its_neighbour(run: Path) -> None:
    refused(lambda: run_folder.load(run.parent / "rnu"), "no such run folder", "did you mean 'run'")


def test_results_are_added_and_never_lost(run: Path) -> None:
    opened = run_folder.open_run(run)
    before = opened.results()
    opened.add_result(evaluations=[{"mean": float("nan")}])
    after = opened.results()
    assert after["training"] == before["training"]
    assert after["evaluations"] == [*before["evaluations"], {"mean": None}]
    opened.results_file.write_text("{")
    refused(lambda: opened.add_result(evaluations=[{}]), "results.json", "damaged")
    assert opened.results_file.read_text() == "{"


def test_a_row_that_a_crash_cut_short_is_left_out(run: Path) -> None:
    opened = run_folder.open_run(run)
    rows = opened.rows()
    with open(opened.metrics_file, "a") as file:
        file.write('{"epoch": 4, "st')
    assert opened.rows() == rows


def test_new_runs_count_up_and_never_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(run_folder.create(None, "digits-MeanField")) for _ in range(2)] == [
        "runs/digits-MeanField-1",
        "runs/digits-MeanField-2",
    ]
    assert (
        run_folder.run_name(Train(data="/x/my faces.npz", guide="a/b.py:Mine(k=2)"))
        == "my-faces-Mine"
    )


def test_a_folder_that_holds_something_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run_folder.create(tmp_path / "empty", "x").folder == tmp_path / "empty"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused(lambda: run_folder.create(tmp_path / "full", "x"), "full", "--out")
    refused(lambda: run_folder.create(tmp_path / "full" / "mine.txt", "x"), "mine.txt", "--out")
    refused(
        lambda: run_folder.create(tmp_path / "full" / "mine.txt" / "y", "x"), "mine.txt", "--out"
    )
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_discarding_takes_back_only_its_own(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for out, left in (("a/b/c", False), ("kept", True)):
        run = run_folder.create(tmp_path / out, "x")
        run.begin(Train(), torch.device("cpu"))
        run.discard()
        assert (tmp_path / out).exists() == left
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    run = run_folder.create(tmp_path / "d", "x")
    (tmp_path / "d" / "theirs").write_text("")
    run.discard()
    assert (tmp_path / "d" / "theirs").exists()


def test_a_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    options = Train(
        data="x.npz",
        data_root=Path("d"),
        learning_rate=1.0,
        epochs=3,
        grad_clip=2.0,
        guide='A(b="c\\d")',
    )
    path = tmp_path / "config.toml"
    path.write_bytes(to_toml(options))
    assert train_from(path) == options
    path.write_text("batch-size = 7\nlearning_rate = 1")
    assert read_config(path) == {"batch_size": 7, "learning_rate": 1.0}
