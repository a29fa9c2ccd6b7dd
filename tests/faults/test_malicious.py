"""Files and words that would run code are refused, and nothing of them is run."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae
from pyro_vae import UserError
from pyro_vae.choices import lookup, registry
from pyro_vae.cli.entry import main
from pyro_vae.data import datasets
from pyro_vae.runs import run_folder
from pyro_vae.runs.config_file import read_config
from pyro_vae.runs.options import Train
from pyro_vae.training import checkpoint_files
from tests.support.children import QUICK, checkpoints, done, one_line


class Evil:
    """Unpickled carelessly, it makes a folder in the current one."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("sentinel",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    assert (
        done(
            folder, ["train", *QUICK, "--steps", "20", "--checkpoint-minutes", "0", "--out", "run"]
        ).wait()
        == 0
    )
    yield folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, for spoiling."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evil_checkpoint() -> bytes:
    """A checkpoint by its form."""
    content = io.BytesIO()
    torch.save(
        {
            "format": 1,
            "version": "9",
            "sections": {"model": {"w": Evil()}, "guide": {}},
            "metadata": {},
        },
        content,
    )
    return content.getvalue()


def overwrite(path: Path, content: bytes) -> None:
    """With a digest that is right."""
    path.write_bytes(content)
    checkpoint_files.manifest(path).write_text(
        f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    )


def bomb() -> bytes:
    """A checkpoint by its form, of 8 MB packed into a thousandth."""
    stored, packed = io.BytesIO(), io.BytesIO()
    sections = {"model": {"w": torch.zeros(2_000_000)}, "guide": {}}
    torch.save({"format": 1, "version": "9", "sections": sections, "metadata": {}}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.namelist():
            new.writestr(each, old.read(each))
    return packed.getvalue()


OTHER = "it has other objects in it than tensors and plain values"
CONTENTS = [
    pytest.param(evil_checkpoint(), OTHER, id="a checkpoint by its form"),
    pytest.param(bomb(), "it would unpack to 8.0 MB", id="a bomb"),
    pytest.param(pickle.dumps(Evil()), OTHER, id="a pickle", marks=pytest.mark.slow),
    pytest.param(
        pickle.dumps({"sections": Evil()}, 2), OTHER, id="torch's old format",
        marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "why"), CONTENTS)
def test_a_malicious_checkpoint_is_refused(
    content: bytes, why: str, run: Path, tmp_path: Path
) -> None:
    """The last one alone: the one before serves. All of them: one line."""
    newest, older = (run / "checkpoints" / name for name in reversed(checkpoints(run)))
    command = [
        "evaluate",
        "run",
        "--num-samples",
        "5",
        "--num-images",
        "5",
        "--quiet",
        "--no-pictures",
    ]
    overwrite(newest, content)
    child = done(tmp_path, command)
    assert child.wait() == 0 and f"the previous one, {older.name}, is used" in child.error
    assert child.error.count("\n") == 1 and "weights_only" not in child.error
    overwrite(older, content)
    (run / "results.json").unlink()
    for each in (command, ["train", "--resume", "run", "--quiet"], ["sample", "run"]):
        child = done(tmp_path, each)
        assert child.wait() == 2
        one_line(child, why)
    assert not (tmp_path / "sentinel").exists()


def test_malicious_data_are_refused(tmp_path: Path) -> None:
    evil = np.array([Evil(), Evil()], dtype=object)
    np.savez(tmp_path / "evil.npz", images=evil, allow_pickle=True)
    np.save(tmp_path / "evil.npy", evil, allow_pickle=True)
    for name in ("evil.pkl", "pickled.npz", "pickled.npy", "evil.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    for path in sorted(tmp_path.glob("*.*")):
        child = done(tmp_path, ["train", *QUICK, "--data", path.name])
        assert child.wait() == 2, path
        one_line(child, path.name)
        assert "allow_pickle" not in child.error
    assert not (tmp_path / "sentinel").exists() and not (tmp_path / "runs").exists()


def test_malicious_estimates_are_refused(run: Path, tmp_path: Path) -> None:
    evil = np.array([Evil()], dtype=object)
    for path in (run / "evaluations").glob("*.npz"):
        np.savez(path, words=evil, log_px=evil, allow_pickle=True)
    shutil.copytree(run, tmp_path / "other")
    child = done(tmp_path, ["compare", "run", "other", "--quiet"])
    assert child.wait() == 2
    one_line(child, "not an estimate")
    assert not (tmp_path / "sentinel").exists()


WORDS = [
    "__import__('os').mkdir('sentinel')",
    "MeanField(__import__('os').mkdir('sentinel'))",
    "(lambda: open('sentinel', 'w'))()",
]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "slot", ["guide", "likelihood", "objective", "optimizer", "schedule", "net"]
)
def test_words_are_read_and_never_evaluated(
    slot: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        registry.build(slot, word, event_shape=(1, 8, 8), latent_dim=2, params=[], lr=0.1)
    (tmp_path / "config.toml").write_text(f'{slot} = "{word}"\nlatent_dim = "__import__(\'os\')"')
    with pytest.raises(UserError, match="latent_dim"):
        read_config(tmp_path / "config.toml")
    assert not (tmp_path / "sentinel").exists()


CALLS = [  # what an installed package has, which makes a file or a folder, or unpickles one
    "torch.utils.collect_env:run('touch sentinel')",
    "torch:load('evil.pt', weights_only=False)",
    "numpy:save('sentinel', 1)",
    "os:mkdir(sentinel)",
    "setuptools._distutils.spawn:spawn(['touch', 'sentinel'])",
    "zipfile:ZipFile('sentinel', 'w')",
    "logging:FileHandler('sentinel')",
    "functools:partial()",
]
PLACES = [
    *((slot, "{}") for slot in lookup.NAMESPACES),
    ("guide", "MeanField(hidden={})"),
    ("guide", "MixtureOfGaussians(components=[({},)])"),
    ("guide", "MeanField(net={})"),
    ("model", "GenerativeModel(prior={})"),
    ("likelihood", "Gaussian(scale={})"),
    ("optimizer", "Adam(eps={})"),
    ("optimizer", "torch.optim:Adam(betas=[{}])"),
    ("warmup", "Cyclical(cycles={})"),
    ("schedule", "Cosine(final={})"),
]


@pytest.mark.parametrize(("slot", "place"), PLACES)
def test_nothing_is_called_but_a_part(
    slot: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a choice names in an installed package is looked at, and refused in one line, before
    any call.
    """
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "evil.pt")
    context: dict[str, Any] = {
        "event_shape": (1, 8, 8),
        "latent_dim": 2,
        "num_data": 3,
        "params": [],
        "lr": 0.1,
    }
    calls = (
        [call.partition("(")[0] for call in CALLS]
        if place == "{}" and slot not in lookup.PROGRAMS
        else []
    )
    for call in (*CALLS, *calls):
        spec = place.format(call)
        with pytest.raises(UserError) as caught:
            datasets.load(spec) if slot == "data" else registry.build(slot, spec, **context)
        assert "\n" not in str(caught.value), spec
        assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"], spec


ATTACKS = {
    "guide": CALLS[0],
    "model": "torch.utils.collect_env:run",
    "likelihood": f"Gaussian(scale={CALLS[0]})",
    "optimizer": CALLS[2],
    "kl_warmup": CALLS[2],
    "schedule": CALLS[1],
    "net": CALLS[0],
    "data": "torch:load",
}


@pytest.mark.parametrize("option", ATTACKS)
def test_no_configuration_calls_a_function(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line and in a TOML file: exit code 2, one line, and no file."""
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "evil.pt")
    (tmp_path / "stranger.toml").write_text(f'{option} = "{ATTACKS[option]}"\n')
    short = ["train", *QUICK, "--steps", "2", "--out", "run"]
    for given in (
        [f"--{option.replace('_', '-')}", ATTACKS[option]],
        ["--config", "stranger.toml"],
    ):
        words = [*short, *given]
        if option == "net":
            del words[words.index("--net") : words.index("--net") + 2]
        assert main(words) == 2
        out, error = capsys.readouterr()
        assert error.count("\n") == 1 and error.startswith("error: ") and out == "", error
        assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt", "stranger.toml"]


@pytest.mark.parametrize(
    "source",
    [
        "../../etc/x.npz",
        "..",
        "/",
        "a/../../b.npy",
        "~/x.npz",
        "C:\\x.npz",
        "\x00",
        "x\n../y",
        "-rf",
        ".hidden",
        "",
    ],
)
def test_a_runs_name_stays_in_the_runs_folder(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run_folder.create(
        None, run_folder.run_name(Train(data=source, guide="../../x/y.py:Mine"))
    )
    assert made.folder.resolve().parent == (
        tmp_path / "runs"
    ).resolve() and not made.folder.name.startswith((".", "-"))


def test_the_package_has_no_other_way_to_run_what_it_reads() -> None:
    """No eval, exec or unpickling anywhere; torch.load and np.load with their safeguards."""
    for path in Path(pyro_vae.__file__).parent.parent.glob("[pgm][yuo]*/**/*.py"):
        if path.parts[-2] not in ("pyro_vae", "nn", "models", "guides"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {
                    "pickle",
                    "dill",
                    "cloudpickle",
                    "joblib",
                    "marshal",
                    "shelve",
                }, path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__"), (path, node.lineno)
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            if called == "torch.load":
                assert given["weights_only"] is True, path
            if called == "np.load":
                assert given["allow_pickle"] is False, path
            assert "allow_pickle" not in given or given["allow_pickle"] is False, path
