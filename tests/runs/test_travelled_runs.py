"""A run and its data in other places than they were: found, known by their SHA-256, or refused in a
line.
"""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyro_vae as pv
from pyro_vae.cli.entry import main

PARTS = ["--net", "MLP(hidden=3)", "--latent-dim", "1", "--device", "cpu", "--compile", "off"]
TRAIN = [*PARTS, "--steps", "5", "--batch-size", "8", "--num-samples", "3", "--no-pictures"]
QUICK = ["--num-samples", "3", "--no-pictures", "--quiet", "--compile", "off", "--device", "cpu"]


def images(seed: int = 0, number: int = 40) -> Any:
    return np.random.default_rng(seed).integers(0, 17, (number, 3, 3)).astype(np.uint8) * 15


def save(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """job/d.npz and job/runs/r, trained in job."""
    folder = tmp_path_factory.mktemp("trained")
    save(folder / "job" / "d.npz", images=images(), labels=np.arange(40) % 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder / "job")
        assert main(["train", "--data", "d.npz", *TRAIN, "--quiet", "--out", "runs/r"]) == 0
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the folder above is where we are."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluations(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "results.json").read_text())["evaluations"]
    return found


def again(*options: str) -> tuple[int, dict[str, Any]]:
    """The exit code of an evaluation, and the last result there is."""
    code = main(["evaluate", "job/runs/r", *QUICK, *options])
    return code, evaluations(Path("job/runs/r"))[-1]


def test_the_data_are_found_beside_the_run(here: Path) -> None:
    """From another folder, where other data have the same name, and where none has."""
    before = evaluations(here / "job/runs/r")[0]
    for there_too in (True, False):
        if there_too:
            save(here / "d.npz", images=images(1))
        else:
            (here / "d.npz").unlink()
        code, found = again()
        assert code == 0
        assert found["mean"] == before["mean"]
        assert found["protocol"]["data_sha256"] == before["protocol"]["data_sha256"]


def test_moved_data_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By --data, or by the folder that they are in now; the line says how."""
    before = evaluations(here / "job/runs/r")[0]["mean"]
    (here / "there").mkdir()
    shutil.move(here / "job/d.npz", here / "there/other-name.npz")
    assert again()[0] == 2
    error = capsys.readouterr().err
    assert "d.npz: no such file" in error and "--data" in error and error.count("\n") == 1
    assert again("--data", "there/other-name.npz")[1]["mean"] == before
    shutil.move(here / "there/other-name.npz", here / "there/d.npz")
    assert again("--data-root", "there")[1]["mean"] == before
    assert main(["plot", "job/runs/r", "curves", "--data", "there/d.npz"]) == 0
    assert main(["compare", "job/runs/r", "job/runs/r2"]) == 2
    assert main(["audit", "job/runs/r", "--data", "there/d.npz"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "plot", "audit"])
def test_other_data_under_the_name_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """By their SHA-256: of another shape, and of the same."""
    for other in (images(1), images()[:, :2, :2][:9]):
        save(here / "job/d.npz", images=other)
        assert main([command, "job/runs/r"]) == 2
        error = capsys.readouterr().err
        assert "d.npz: not the data that job/runs/r was trained on" in error
        assert error.count("\n") == 1
    assert main([command, "job/runs/r", "--data", "digits"]) == 2
    assert "digits: not the data" in capsys.readouterr().err


def test_a_new_test_set_is_scored_whole_and_in_order(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The nightly job: all rows, observed by the run's options on the run's levels; said so."""
    save(here / "new.npz", images=images()[:7])
    code, found = again("--data", "new.npz", "--split", "all")
    assert code == 0 and found["split"] == "all" and found["num_images"] == 7
    protocol = found["protocol"]
    assert protocol["data"] == "new.npz" and protocol["images"] == "new"
    assert protocol["observation"] == "dynamic binarization; test drawn once, seed 0 (auto)"
    assert protocol["data_sha256"] != evaluations(here / "job/runs/r")[0]["protocol"]["data_sha256"]
    assert "data new.npz" in capsys.readouterr().out
    mean = found["mean"]
    save(here / "split.npz", train=images()[:4], test=images()[4:7])
    assert again("--data", "split.npz", "--split", "all")[1]["mean"] == mean
    one = again("--data", "new.npz", "--split", "all", "--num-images", "3")[1]
    assert one["protocol"]["images"] == "3 of 7 new images, chosen from seed 0"
    assert again("--split", "all")[0] == 2
    assert "name the set with --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (images() / 255.0, "floats, but the other set has 256 levels"),
        (images().astype(int) * 3, "has the value"),
        (images()[:, :2], "images of shape (1, 2, 3), but the run was trained on (1, 3, 3)"),
    ],
    ids=["floats", "beyond", "shape"],
)
def test_a_new_set_on_another_scale_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], new: Any, words: str
) -> None:
    save(here / "new.npz", images=new)
    assert again("--data", "new.npz", "--split", "all")[0] == 2
    error = capsys.readouterr().err
    assert "new.npz" in error and words in error and error.count("\n") == 1


def test_few_levels_and_few_classes_keep_their_meaning(tmp_path: Path) -> None:
    """A new set whose largest level is small, or that has some of the named classes, is on the
    scale of the whole set.
    """
    from pyro_vae.data.datasets import load
    from pyro_vae.data.image_data import Likeness

    save(tmp_path / "x.npz", images=images()[:5] // 15, labels=np.array(["c", "a", "c", "c", "a"]))
    found = load(tmp_path / "x.npz", like=Likeness(17, ("a", "b", "c")))
    assert found.levels == 17 and found.classes == ("a", "b", "c")
    assert found.test_labels is not None and found.test_labels.tolist() == [2, 0, 2, 2, 0]
    with pytest.raises(pv.UserError, match="unknown class 'c'"):
        load(tmp_path / "x.npz", like=Likeness(17, ("a", "b")))
    with pytest.raises(pv.UserError, match="level 16 found where levels 0 to 3"):
        load(tmp_path / "x.npz", like=Likeness(4, ("a", "b", "c")))


def test_a_stopped_run_goes_on_with_moved_data(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume RUN --data PATH` where the SHA-256 agrees; the configuration keeps its words."""
    run = here / "job/runs/r"
    (run / "results.json").unlink()
    config = (run / "config.toml").read_bytes()
    (here / "there").mkdir()
    shutil.move(here / "job/d.npz", here / "there/d.npz")
    save(here / "other.npz", images=images(1))
    assert main(["train", "--resume", "job/runs/r", "--quiet"]) == 2
    assert "d.npz: no such file" in capsys.readouterr().err
    assert main(["train", "--resume", "job/runs/r", "--quiet", "--data", "other.npz"]) == 2
    assert "other.npz: not the data that job/runs/r was trained on" in capsys.readouterr().err
    assert not (run / "results.json").exists()
    assert main(["train", "--resume", "job/runs/r", "--quiet", "--data", "there/d.npz"]) == 0
    assert (run / "config.toml").read_bytes() == config and evaluations(run)[0]["num_images"] == 8


def test_an_evaluation_says_when_and_by_what(here: Path) -> None:
    """Time (UTC), duration, version, and the commit of the checkout in which it was made."""
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    _, found = again()
    time = datetime.datetime.fromisoformat(found["time"])
    assert before <= time <= datetime.datetime.now(datetime.UTC)
    assert 0 < found["seconds"] < 600 and found["version"] == pv.__version__
    assert found["commit"] is None  # no checkout


def test_compare_evaluates_afresh_where_the_number_differs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its help says: by default, on the images of the first run."""
    shutil.copytree(here / "job/runs/r", here / "job/runs/s")
    assert again("--num-images", "5")[0] == 0
    capsys.readouterr()
    arguments = ["compare", "job/runs/r", "job/runs/s", "--compile", "off", "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["num_images"] == 5 and "evaluating job/runs/s" in out.err
    assert evaluations(here / "job/runs/s")[-1]["num_images"] == 5
