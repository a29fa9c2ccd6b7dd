"""`pyro-vae evaluate --method …` and `pyro-vae compare`, on digits, tiny; what they print, keep,
and refuse.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.entry import main
from pyro_vae.evaluation import result_files
from pyro_vae.runs import evaluation_methods, run_folder
from pyro_vae.signals import Stopped

SHORT = "--net MLP(hidden=16) --latent-dim 2 --num-samples 20 --eval-images 12 --quiet --steps 20 --compile off --no-pictures"
METHODS = {
    "iw": "--num-samples 30 --proposal Defensive(scale=3)",
    "ais": "--num-steps 3 --num-chains 2 --compile graph",
    "bdmc": "--num-steps 3 --num-chains 2 --compile graph",
    "refine": "--num-steps 3 --num-samples 20",
    "prior": "--num-samples 20",
}


def train(folder: Path, *others: str) -> Path:
    assert main(["train", *SHORT.split(), *others, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs on the same images, and one on others."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "a")
    train(folder / "b", "--seed", "1")
    train(folder / "other", "--data-seed", "1")
    train(folder / "density", "--likelihood", "Gaussian(scale=learned)")
    yield folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them as the current folder."""
    folder = Path(shutil.copytree(trained, tmp_path / "runs"))
    monkeypatch.chdir(folder)
    return folder


EARLIER = ("log_px", "se", "ess", "khat", "elbo_px", "max_weight_share", "debiased_px")


def strict(text: str) -> Any:
    """JSON as its standard has it, without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def evaluate(line: str, number: int = 9) -> int:
    return main([*f"evaluate a --num-images {number} --quiet --compile off {line}".split()])


# ------------------------------------------------------------------------------------------
# evaluate


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prints_and_adds_its_result(
    method: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(f"--method {method} {METHODS[method]} --json") == 0
    out, err = capsys.readouterr()
    result = strict(out)
    assert out.count("\n") == 1 and err == ""
    assert (result["method"], result["run"], result["num_images"]) == (method, "a", 9)
    assert {"guide", "latent_dim", "sha256", "seed"} <= result["protocol"].keys()
    first, added = strict((here / "a/results.json").read_text())["evaluations"]
    assert first["method"] == "iw"
    split = "simulated" if method == "bdmc" else "test"
    assert added == {"split": split, **{k: v for k, v in result.items() if k != "run"}}
    pictured = method in ("iw", "ais")
    assert (here / "a/evaluation.png").is_file() == pictured
    rows = (here / "a/per_image.csv").read_text().splitlines()
    assert rows[0].startswith("image,log_px,se") and len(rows) == 1 + (9 if pictured else 12)


def test_the_headline_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--method bdmc --num-steps 3 --num-chains 2 --compile graph", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "≤ log p(x) ≤" in lines[0]
        and "N = 4 simulated images" in lines[0]
        and lines[-1] == "run: a"
    )
    assert "guide MeanField" in lines[2] and "data simulated from the model" in lines[2]


def test_the_table_of_methods_is_that_of_the_options() -> None:
    from typing import get_args, get_type_hints

    from pyro_vae.runs.command_options import OF_METHODS, Compare, Evaluate

    assert tuple(evaluation_methods.METHODS) == get_args(get_type_hints(Evaluate)["method"])
    assert {
        name for known in OF_METHODS.values() for name in known
    } <= evaluation_methods.METHODS.keys()
    assert set(get_args(get_type_hints(Compare)["method"])) <= evaluation_methods.METHODS.keys()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "evaluate a --method iw --num-steps 3",
            "takes no --num-steps, which is for ais, bdmc, refine",
        ),
        ("evaluate a --method ais --num-samples 3", "takes no --num-samples"),
        ("evaluate a --method prior --proposal guide", "takes no --proposal"),
        ("evaluate a --method bdmc --split valid", "simulates"),
        ("evaluate a --proposal Defensiv", "did you mean 'Defensive'"),
        ("evaluate a --proposal Defensive(scale=0.5)", "above 1"),
        ("evaluate a --method ais --num-images 5000", "359"),
        ("evaluate a --num-chains 0 --method ais", "--num-chains 0"),
        ("compare a", "two or more run folders"),
        ("compare a a/../a", "given twice"),
        ("compare a c", "no such run folder"),
        ("compare a b --method ais --num-samples 3", "takes no --num-samples"),
        ("compare a other", "are of different x"),
        ("compare a density", "density"),
    ],
)
def test_a_mistake_is_one_line_and_adds_nothing(
    line: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert main([*line.split(), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("method", ["ais --num-images 9", "bdmc"])
def test_a_number_that_json_lacks_is_null(
    method: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        main(
            f"evaluate a --method {method} --num-images 1 --num-steps 2 --num-chains 2 --json "
            "--quiet".split()
        )
        == 0
    )
    result = strict(capsys.readouterr().out)
    assert result.get("se_total") is None and result.get("se_gap") is None
    strict((here / "a/results.json").read_text())


def test_an_interruption_leaves_what_was_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped(2)

    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        stopped = replace(evaluation_methods.METHODS["iw"], estimator=stop)
        patched.setitem(evaluation_methods.METHODS, "iw", stopped)
        assert evaluate("--num-samples 5") == 130
    assert "nothing was added" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(pv.LogMarginal, "plot", stop)
    assert evaluate("--num-samples 5") == 130
    assert "a/results.json" in capsys.readouterr().err
    assert len(strict((here / "a/results.json").read_text())["evaluations"]) == 2


# ------------------------------------------------------------------------------------------
# compare


def test_compare_reads_what_the_runs_have_stored(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evaluation_methods, "log_marginal", lambda *_, **__: pytest.fail("evaluated again")
    )
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert main(["compare", "a", "b", "--json"]) == 0
    result = strict(capsys.readouterr().out)
    means = {
        name: strict((here / name / "results.json").read_text())["evaluations"][0]["mean"]
        for name in "ab"
    }
    assert {row["name"]: row["mean"] for row in result["rows"]} == pytest.approx(means, abs=1e-12)
    best, worst = result["rows"]
    assert (best["difference"], best["z"]) == (0.0, None)
    assert (
        worst["difference"] == pytest.approx(-abs(means["a"] - means["b"]))
        and worst["se_difference"] > 0
    )
    assert (result["num_images"], result["protocol"]["data"]) == (12, "digits")
    for pattern in (["[ab]"], ["?"], ["b", "?"]):
        assert main(["compare", *pattern, "--json"]) == 0
        assert strict(capsys.readouterr().out)["rows"] == result["rows"]
    assert main(["compare", "no*"]) == 2 and "no run folder fits" in capsys.readouterr().err
    assert main(["compare", "a", "b"]) == 0
    out, err = capsys.readouterr()
    assert "± paired" in out and "sha256" in out and err == ""
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_compare_evaluates_where_nothing_is_stored(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("b/evaluations")
    shutil.copytree("b", "c")
    checkpoint = next(Path("c/checkpoints").glob("*.pt"))
    assert main(["compare", "a", "b", "--quiet", "--compile", "off", "--json"]) == 0
    assert strict(capsys.readouterr().out)["num_images"] == 12  # as many as the other has
    assert len(strict(Path("b/results.json").read_text())["evaluations"]) == 2
    shutil.copytree("b/evaluations", "c/evaluations")  # of other parameters than c's, from here on
    manifest = checkpoint.with_name(checkpoint.name + ".sha256")
    held = run_folder.open_run("c").estimate_file("iw", "test")
    assert result_files.load_estimate(held, run_folder.open_run("c").trained()) is not None
    manifest.write_text("0" * 64 + "  x.pt\n")
    assert result_files.load_estimate(held, run_folder.open_run("c").trained()) is None
    again = ["--num-images", "5", "--num-samples", "7"]
    assert main(["compare", "a", "b", "--quiet", "--compile", "off", "--json", *again]) == 0
    result = strict(capsys.readouterr().out)
    assert result["num_images"] == 5 and result["protocol"]["estimator"] == "IW-7"


def test_compare_reads_what_stored_results_score(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other digests or another quantity are refused by name; a result of before is compared, with a
    word.
    """
    run = run_folder.open_run("b")
    path = run.estimate_file("iw", "test")
    ll = result_files.load_estimate(path, run.trained())
    assert (
        ll is not None
        and ll.protocol["scored"] == {"x": ll.protocol["sha256"]}
        and not ll.protocol["conditions"]
    )

    def compared(**changed: Any) -> tuple[int, str]:
        protocol = {
            key: value for key, value in {**ll.protocol, **changed}.items() if value is not None
        }
        result_files.save_estimate(path, replace(ll, protocol=protocol), run.trained())
        code = main(["compare", "a", "b", "--quiet"])
        return code, "".join(capsys.readouterr())

    code, text = compared()
    assert code == 0 and "an old result with a digest of x alone" not in text
    code, text = compared(quantity=None, scored=None, conditions=None)
    assert code == 0 and "b is an old result with a digest of x alone" in text
    code, text = compared(quantity="log p(x | y)", conditions={"y": "a" * 64})
    assert code == 2 and "'b' log p(x | y): these are different quantities" in text
    code, text = compared(scored={"x": "a" * 64})
    assert code == 2 and "'a' scores at site 'x'" in text


def test_a_stored_estimate_is_the_estimate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder.open_run("a")
    model, guide, _ = run.load_pair()
    x = torch.rand(6, 1, 8, 8).round()
    for number, ll in enumerate(
        (
            pv.log_marginal(model, guide, x, num_samples=30, compile="off", bits_offset=8.0),
            pv.ais(model, guide, x, num_steps=3, num_chains=1, num_leapfrog=1, compile="off"),
        )
    ):
        path = here / f"{number}.npz"
        result_files.save_estimate(path, ll, "these")
        again = result_files.load_estimate(path, "these")
        assert again is not None and type(again) is type(ll)
        assert str(again) == str(ll) and again.to_dict().keys() == ll.to_dict().keys()
        assert (
            torch.equal(again.log_px, ll.log_px)
            and again.curve == ll.curve
            and again.notes == ll.notes
        )
        assert torch.equal(again.khat.nan_to_num(nan=9.0), ll.khat.nan_to_num(nan=9.0))
        assert result_files.load_estimate(path, "others") is None
    bounds = pv.bdmc(model, guide, size=4, num_steps=3, num_chains=2, num_leapfrog=1, compile="off")
    gaps = pv.refine(model, guide, x, num_steps=2, num_samples=20, compile="off")
    for ll in (bounds, gaps):
        result_files.save_estimate(path, ll, "these")
        again = result_files.load_estimate(path, "these")
        assert type(again) is type(ll) and str(again) == str(ll)
        assert again.to_dict() == ll.to_dict()
        assert again.per_image().equals(ll.per_image()) and len(ll.per_image()) == ll.num_images
        assert all(f"{name} by image" in again.summary() for name in ll.columns)
    assert again.guide is None and again.log_marginal.curve == gaps.log_marginal.curve
    assert bounds.protocol["checked"].startswith("against pyro.infer")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(pv.UserError, match="damaged"):
        result_files.load_estimate(path, "these")


def test_an_estimate_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it before results had one base."""
    tensors = {name: torch.arange(3.0).double() for name in EARLIER}
    said = {"estimator": "IW-10", "sha256": "ab", "num_dims": 4}
    words = {"curve": {"1": -2.0, "10": 1.0}, "num_samples": 10, "protocol": said}
    words |= {"notes": ["a note"], "bits_offset": 8.0, "class": "LogMarginal", "of": "these"}
    arrays = {name: value.numpy() for name, value in tensors.items()}
    path = tmp_path / "iw.test.npz"
    np.savez_compressed(path, words=np.array(json.dumps(words)), **arrays)
    ll = result_files.load_estimate(path, "these")
    assert type(ll) is pv.LogMarginal and ll.mean == 1.0 and ll.notes == ("a note",)
    assert ll.curve == {1: -2.0, 10: 1.0} and ll.bits_per_dim is not None and ll.protocol == said


# ------------------------------------------------------------------------------------------------
# the result's own ways


def test_a_result_gives_itself_to_other_tools(here: Path) -> None:
    model, guide = pv.load("a")
    x = torch.rand(6, 1, 8, 8).round()
    ll = pv.log_marginal(model, guide, x, num_samples=30, compile="off")
    assert ll.to_csv("x.csv").read_text() == ll.per_image().to_csv(index=False)
    assert "elpd" in str(ll.to_elpd())
    posterior = ll.to_inference_data(model, guide, x, num_images=2, num_draws=3).posterior
    assert posterior["z"].shape == (1, 3, 2, 2)
    assert ll.plot("x.png", x).stat().st_size > 10_000


def test_the_kind_is_known_and_the_caller_may_say_another(here: Path) -> None:
    x = torch.rand(4, 1, 8, 8).round()
    for folder, kind in (("a", "mass"), ("density", "density")):
        model, guide = pv.load(folder)
        options: dict[str, Any] = {"num_samples": 5, "compile": "off"}
        assert pv.log_marginal(model, guide, x, **options).protocol["kind"] == kind
        assert (
            pv.log_marginal(model, guide, x, protocol={"kind": "mine"}, **options).protocol["kind"]
            == "mine"
        )
        assert (
            pv.ais(
                model, guide, x, num_steps=2, num_chains=1, num_leapfrog=1, compile="off"
            ).protocol["kind"]
            == kind
        )


def test_a_gaussian_narrower_than_the_grain_is_told(here: Path) -> None:
    from pyro_vae import guides, models

    x = torch.rand(4, 1, 8, 8)
    guide = guides.MeanField((1, 8, 8), 2, hidden=(4,))
    for scale, told in ((0.5, False), (0.001, True)):
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Gaussian(2, (1, 8, 8), scale=scale, hidden=(4,))
        )
        for bits in (8.0, None):
            ll = pv.log_marginal(model, guide, x, num_samples=5, compile="off", bits_offset=bits)
            assert any("dequantization noise" in text for text in ll.warnings) == (
                told and bits is not None
            )


def test_a_refined_guide_on_other_images_is_refused_in_one_sentence(here: Path) -> None:
    model, guide = pv.load("a")
    x = torch.rand(6, 1, 8, 8).round()
    refined = pv.refine(model, guide, x, num_steps=2, num_samples=5, compile="off").guide
    with pytest.raises(pv.UserError) as refused:
        pv.log_marginal(model, refined, 1 - x, num_samples=5, compile="off")
    assert "refined" in str(refused.value) and "Trace Shapes" not in str(refused.value)
    assert str(refused.value).count("\n") == 0
