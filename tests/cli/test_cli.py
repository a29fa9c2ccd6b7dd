"""The command line as its users meet it: what is printed where, exit codes, one clear line for a
mistake, nothing left behind.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.choices.lookup import NAMESPACES
from pyro_vae.cli.command_table import COMMANDS
from pyro_vae.cli.entry import main, parse
from pyro_vae.runs import run_folder
from pyro_vae.runs.fit_run import Recorder
from pyro_vae.runs.options import Train

TINY = [
    "--net",
    "MLP(hidden=16)",
    "--latent-dim",
    "2",
    "--num-samples",
    "20",
    "--eval-images",
    "40",
    "--quiet",
]
SHORT = [*TINY, "--steps", "20", "--compile", "off", "--no-pictures"]

PROGRAMS = """
import pyro, torch
from pyro import distributions as dist
from pyro_vae.guides import AmortizedGuide
from pyro_vae.models import GenerativeModel

class Point(AmortizedGuide):
    def __init__(self, event_shape, latent_dim, net="MLP", **net_args):
        super().__init__(event_shape, latent_dim, latent_dim, net, **net_args)

    def build(self, eta):
        return dist.Delta(eta, event_dim=1)

class Own(torch.nn.Module):
    def __init__(self, event_shape, latent_dim):
        super().__init__()
        self.shape, self.latent_dim = event_shape, latent_dim
        self.net = torch.nn.Linear(latent_dim, 64)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            logits = self.net(z).reshape(len(x), *self.shape)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

class Hidden(AmortizedGuide):
    def __init__(self, event_shape, latent_dim, net="MLP", **net_args):
        super().__init__(event_shape, latent_dim, latent_dim, net, **net_args)

    def build(self, eta):
        return dist.Normal(eta, pyro.param("width", torch.tensor(1.0))).to_event(1)

def function(x):
    pass
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SHORT, "--out", str(folder)]) == 0
    yield folder


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    """A copy of it in the current folder."""
    return Path(shutil.copytree(trained, here / "run"))


# ------------------------------------------------------------------------------------------
# help


@pytest.mark.parametrize("arguments", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_checks_need_no_torch(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"import sys; from pyro_vae.cli.entry import main; code = main({arguments})"
    code += "; assert 'torch' not in sys.modules; sys.exit(code)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    out, err = capfd.readouterr()
    assert "usage: pyro-vae" in out and err == ""


def test_every_option_of_train_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for name in (each.name for each in fields(Train)):
        assert f"--{name.replace('_', '-')}" in text or f"--no-{name.replace('_', '-')}" in text


def test_help_is_in_groups_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """And says what happens without an option, in no parser's notation."""
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    heads = [line for line in text.splitlines() if line.endswith(":") and line[:1] != " "]
    assert heads == [f"{head}:" for head in (*Train.groups, "examples")]
    assert text.count("\n  pyro-vae train") == len(Train.examples) == 3
    for name in ("kl-warmup", "grad-clip", "freeze", "init-from", "early-stopping", "labels"):
        said = text.partition(f"  --{name} ")[2].partition("\n  --")[0]
        assert "by default" in " ".join(said.split()).lower(), name
    assert not any(noise in text for noise in ("None", "{", "SUPPRESS", "default: "))


@pytest.mark.parametrize("example", Train.examples)
def test_the_examples_are_options(example: str) -> None:
    assert isinstance(parse(shlex.split(example)[1:]), Train)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --lr 1e-3", "unknown option --lr; did you mean --learning-rate?"),
        ("train --nett=Conv", "unknown option --nett; did you mean --net?"),
        ("train --compile auot", "--compile 'auot': expected one of auto, inductor, graph, off"),
        ("train --steps", "--steps: expected one argument"),
        ("train --steps many", "--steps 'many': expected a whole number"),
        ("train --quiet=3", "--quiet"),
        ("train extra", "unknown argument extra"),
        ("evaluate", "required: RUN"),
        ("list guide prior", "unknown argument prior"),
        ("bench --only", "--only: expected at least one argument"),
        pytest.param("bench --only WRONG", "unknown case 'WRONG'", marks=pytest.mark.slow),
        ("bench fast", "SUITES 'fast': expected one of training, epochs"),
        ("--verbose", "--verbose"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    line: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    out, err = capfd.readouterr()
    assert out == "" and words in err and err.startswith("error: ") and err.count("\n") == 1, err


def test_words_become_values() -> None:
    """Joined or after the flag, with ``_`` or ``-``, several, switched off, by place."""
    read = parse(["train", "--batch_size=3", "--kl-warmup", "2", "--no-pictures", "--json"])
    assert (read.batch_size, read.kl_warmup, read.pictures, read.json) == (3, 2.0, False, True)
    assert parse(["train", "--kl-warmup", "Cyclical"]).kl_warmup == "Cyclical"
    read = parse(["plot", "run", "curves", "latent", "--beside", "b", "c", "--seed", "1"])
    assert (read.pages, read.beside) == (("curves", "latent"), (Path("b"), Path("c")))
    assert parse(["sample", "run", "-n", "3"]).number == 3 and parse(["list"]).slot is None


def test_the_module_is_the_command(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae", "trian"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown command 'trian'; did you mean 'train'?")
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------
# mistakes


def files_for_mistakes(folder: Path) -> None:
    """What the table below refers to."""
    grey = np.random.default_rng(0).random((30, 4, 4)).astype(np.float32)
    holed = grey.copy()
    holed[7, 2, 2] = np.nan
    np.savez(folder / "nan.npz", images=holed)
    np.savez(folder / "grey.npz", images=grey)
    np.savez(folder / "loud.npz", images=255 * grey)
    np.savez(folder / "flat.npz", images=grey.reshape(30, 16))
    np.savez(folder / "empty.npz", images=grey[:0])
    np.savez(folder / "one.npz", images=grey[:1])
    np.savez(folder / "complex.npz", images=grey.astype(np.complex64))
    (folder / "parts.py").write_text(PROGRAMS)
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "broken.toml").write_text("steps = ")
    (folder / "unknown.toml").write_text("latent_dmi = 3")
    (folder / "typed.toml").write_text('batch_size = "large"')
    (folder / "truth.toml").write_text("latent_dim = true")
    (folder / "table.toml").write_text("[model]\nname = 'x'")
    (folder / "range.toml").write_text("learning_rate = -1.0")
    (folder / "choice.toml").write_text("compile = 'fast'")


TRAIN_MISTAKES = [
    ("--guide MeanFeild", "did you mean 'MeanField'"),
    ("--model GenerativeModl", "did you mean 'GenerativeModel'"),
    ("--prior StandardNormall", "did you mean 'StandardNormal'"),
    ("--likelihood Bernouli", "did you mean 'Bernoulli'"),
    ("--objective Trace_ELB", "did you mean 'Trace_ELBO'"),
    ("--net MPL", "did you mean 'MLP'"),
    ("--optimizer Adm", "did you mean 'Adam'"),
    ("--schedule cosin", "did you mean 'Cosine'"),
    ("--data digit", "did you mean 'digits'"),
    ("--guide StandardNormal", "is a part of the slot prior"),
    ("--guide MeanField(dept=3)", "dept"),
    ("--guide MeanField(", "position"),
    ("--guide MeanField(latent_dim=5)", "event shape"),
    ("--guide parts.py:Piont", "did you mean 'Point'"),
    ("--guide parts.py:function", "nn.Module"),
    ("--guide parts.py:Hidden", "pyro.param('width')"),
    ("--guide nowhere.py:Mine", "nowhere.py"),
    ("--model parts.py:Own", "observes"),
    ("--model parts.py:Own --binarize dynamic --likelihood Gaussian", "takes no likelihood"),
    ("--net Conv --data flat.npz --batch-size 8", "Conv needs images"),
    ("--latent-dim 0", "--latent-dim 0"),
    ("--steps 0", "--steps 0"),
    ("--epochs 0", "--epochs 0"),
    ("--steps 5 --epochs 5", "one of the two"),
    ("--batch-size 0", "--batch-size 0"),
    ("--batch-size 5000", "1294"),
    ("--learning-rate -1", "--learning-rate -1"),
    ("--learning-rate nan", "--learning-rate nan"),
    ("--kl-weight -1", "--kl-weight -1"),
    ("--kl-warmup -1", "--kl-warmup -1"),
    ("--grad-clip 0", "--grad-clip 0"),
    ("--valid-fraction 1", "--valid-fraction 1"),
    ("--early-stopping 0", "--early-stopping 0"),
    ("--early-stopping 2 --valid-fraction 0", "--valid-fraction"),
    ("--num-samples 0", "--num-samples 0"),
    ("--eval-images 0", "--eval-images 0"),
    ("--eval-images 5000", "359"),
    ("--seed -1", "--seed -1"),
    ("--seed 4294967296", "--seed 4294967296"),
    ("--device gpu", "gpu"),
    ("--data nan.npz", "image 7"),
    ("--data grey.npz --binarize none --batch-size 8", "grey value"),
    ("--data loud.npz --batch-size 8", "needs values in [0, 1]"),
    ("--data empty.npz", "empty.npz"),
    ("--data one.npz", "at least three"),
    ("--data complex.npz", "complex64"),
    ("--data grey.npz", "22 images"),
    ("--data absent.npz", "absent.npz"),
    ("--init-from nowhere", "no such run folder"),
    ("--freeze modle", "did you mean 'model'"),
    ("--out full", "full"),
    ("--out full/mine.txt", "mine.txt"),
    ("--out full/mine.txt/x", "mine.txt"),
    ("--config absent.toml", "absent.toml"),
    ("--config broken.toml", "TOML"),
    ("--config unknown.toml", "did you mean 'latent_dim'"),
    ("--config typed.toml", "batch_size = 'large'"),
    ("--config truth.toml", "latent_dim = True"),
    ("--config table.toml", "model"),
    ("--config range.toml", "--learning-rate -1"),
    ("--config choice.toml", "inductor"),
]

OTHER_MISTAKES = [
    ("trian", "did you mean 'train'"),
    ("evaluate nowhere", "no such run folder"),
    ("evaluate full", "config.toml"),
    ("evaluate nowhere --num-samples 0", "--num-samples 0"),
    ("sample nowhere", "no such run folder"),
    ("sample nowhere -n 0", "--number 0"),
    ("plot nowhere", "no such run folder"),
    ("list gide", "did you mean 'guide'"),
]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        *((f"train --quiet --steps 2 {line}", words) for line, words in TRAIN_MISTAKES),
        *OTHER_MISTAKES,
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files_for_mistakes(here)
    if "--epochs" in line and "--epochs 5" not in line:
        line = line.replace("--steps 2 ", "")
    before = sorted(here.rglob("*"))
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert words in err
    assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["train", "evaluate run", "sample run", "plot run"])
def test_cuda_where_there_is_none(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--device", "cuda"]) == 2
    assert "cuda" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_a_download_that_fails_says_what_to_put_where(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert main(["train", "--data", "mnist", "--data-root", "root"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: mnist: not found in root")
    assert "train-images-idx3-ubyte.gz" in err and "--data-root" in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "line", ["train --lerning-rate 1", "train --steps many", "train --compile fast", "evaluate"]
)
def test_what_the_parser_refuses_ends_with_2(
    line: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err and "Traceback" not in err
    assert not list(here.iterdir())


# ------------------------------------------------------------------------------------------
# train


def test_train_ends_with_the_headline_and_the_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SHORT]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert (
        lines[0].startswith("log p(x) ≥ −")
        and "IW-20, N = 40" in lines[0]
        and "k̂ > 0.7" in lines[0]
    )
    for words in (
        "data digits",
        "dynamic binarization",
        "guide MeanField",
        "40 of 359 test images",
        "steps 20",
    ):
        assert words in lines[1]
    assert lines[-1] == "run: runs/digits-MeanField-1"
    assert (
        len(run_folder.open_run("runs/digits-MeanField-1").rows()) == 1
    )  # 20 steps of 11 an epoch: one record


def test_progress_goes_to_stderr_and_json_alone_to_stdout(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word for word in SHORT if word != "--quiet"]
    assert main(["train", *arguments, "--json", "--out", "a/b"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert out.count("\n") == 1
    assert result["run"] == "a/b" and result["num_samples"] == 20 and result["num_images"] == 40
    for name in ("mean", "se_mc", "se_total", "bias", "lower95", "elbo"):
        assert isinstance(result[name], float)
    assert "training step" in err and "20/20" in err
    held = json.loads(Path("a/b/results.json").read_text())
    assert held["evaluations"] == [
        {"split": "test", **{k: v for k, v in result.items() if k != "run"}}
    ]


def test_the_same_seed_gives_the_same_number(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    means = []
    for seed in ("1", "1", "2"):
        assert main(["train", *SHORT, "--json", "--seed", seed]) == 0
        means.append(json.loads(capsys.readouterr().out)["mean"])
    assert means[0] == means[1] != means[2]


def test_a_swap_is_one_word(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *SHORT,
        "--json",
        "--likelihood",
        "Gaussian(scale=learned)",
        "--objective",
        "Trace_ELBO",
    ]
    assert (
        main(["train", *arguments, "--optimizer", "SGD(momentum=0.9)", "--schedule", "constant"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"]["kind"] == "density"
    assert "dequantization" in result["protocol"]["observation"]
    assert result["bits_per_dim"] is not None


def test_a_users_own_file_serves_as_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files_for_mistakes(here)
    assert (
        main(["train", *SHORT, "--model", "parts.py:Own", "--binarize", "threshold", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert "likelihood" not in result["protocol"]
    model, guide = pv.load(result["run"])
    x = torch.zeros(2, 1, 8, 8)
    assert pv.log_weights(model, guide, x, num_particles=3).shape == (3, 2)


def test_a_point_mass_has_a_reconstruction_error_and_no_log_px(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files_for_mistakes(here)
    arguments = [
        *SHORT,
        "--guide",
        "parts.py:Point",
        "--objective",
        "Trace_ELBO",
        "--kl-weight",
        "0",
    ]
    assert main(["train", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reconstruction error") and "nats" in lines[0]
    assert "no log p(x)" in lines[1]
    assert lines[2] == "run: runs/digits-Point-1"
    assert main(["evaluate", "runs/digits-Point-1"]) == 2
    assert "point mass" in capsys.readouterr().err


def test_the_configuration_of_a_run_repeats_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parse(["train", "--config", "run/config.toml", "--seed", "3", "--epochs", "4"])
    assert isinstance(options, Train)
    assert (options.seed, options.epochs, options.steps, options.latent_dim) == (3, 4, None, 2)
    assert options.pictures is False and options.net == "MLP(hidden=16)"
    assert main(["train", "--config", "run/config.toml", "--json", "--quiet"]) == 0
    first = json.loads((run / "results.json").read_text())["evaluations"][0]
    assert json.loads(capsys.readouterr().out)["mean"] == first["mean"]


def test_a_run_begins_from_another_and_says_what_is_fresh(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on where that one is gone: a resumed run does not begin again."""
    words = [*SHORT, "--guide", "iaf( depth=1 )", "--init-from", "run", "--freeze", "model"]
    assert main(["train", *words, "--out", "next"]) == 0
    results = run_folder.open_run("next").results()
    assert run_folder.open_run("next").options().guide == "IAF(depth=1)"  # by its own name
    assert results["training"]["init"].startswith("from run: model.likelihood, ")
    assert "guide.flow" in results["training"]["init"].partition("; fresh: ")[2]
    protocol = results["evaluations"][0]["protocol"]
    assert (protocol["init_from"], protocol["freeze"]) == ("run", "model")
    (model, _), (source, _) = pv.load("next"), pv.load("run")
    assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))
    shutil.rmtree("run")
    (run.parent / "next" / "results.json").unlink()
    assert main(["train", "--resume", "next", "--quiet"]) == 0
    assert run_folder.open_run("next").results()["training"]["init"] == results["training"]["init"]


def test_early_stopping_ends_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [word for word in SHORT if word not in ("--steps", "20", "--quiet", "--num-samples")]
    arguments = [
        *short,
        "--num-samples",
        "9",
        "--epochs",
        "30",
        "--early-stopping",
        "1",
        "--learning-rate",
        "1e-30",
    ]
    assert main(["train", *arguments]) == 0
    assert "EarlyStopping after epoch" in capsys.readouterr().err
    assert (
        "EarlyStopping"
        in run_folder.open_run("runs/digits-MeanField-1").results()["training"]["stopped"]
    )


def test_a_loss_that_diverges_is_a_failure_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SHORT, "--optimizer", "SGD", "--learning-rate", "1e30", "--schedule", "constant"]
    assert main(["train", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "learning rate" in err


# ------------------------------------------------------------------------------------------
# signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint(
    number: signal.Signals,
    code: int,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Recorder.__call__

    def record_and_stop(self: Recorder, state: Any) -> None:
        record(self, state)
        if state.train.epoch == 2:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    monkeypatch.setattr(Recorder, "__call__", record_and_stop)
    assert main(["train", *SHORT, "--steps", "1000", "--out", "run"]) == code
    assert signal.getsignal(number) is before
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert (
        number.name in err and "--resume run" in err and "run/checkpoints/step-000000022.pt" in err
    )
    model, guide = pv.load("run")
    assert not model.training and not guide.training
    assert (
        main(
            [
                "evaluate",
                "run",
                "--num-samples",
                "5",
                "--num-images",
                "5",
                "--quiet",
                "--compile",
                "off",
            ]
        )
        == 0
    )


@pytest.mark.slow
def test_a_process_that_is_terminated_ends_with_143_and_a_checkpoint(here: Path) -> None:
    arguments = [word for word in SHORT if word != "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "pyro_vae",
        "train",
        *arguments,
        "--steps",
        "1000000",
        "--out",
        "run",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "training step" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 143
    process.stderr.close()
    assert "Traceback" not in rest and "stopped by SIGTERM; checkpoint" in rest
    pv.load("run")


# -----------------------------------------------------------------------------------------
# evaluate, sample, plot, list


def test_evaluate_adds_to_the_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "results.json").read_text())
    for split, number in (("test", 30), ("valid", 144)):
        arguments = [
            "evaluate",
            "run",
            "--split",
            split,
            "--num-samples",
            "10",
            "--compile",
            "off",
            "--quiet",
        ]
        assert (
            main([*arguments, "--json", *(["--num-images", "30"] if split == "test" else [])]) == 0
        )
        result = json.loads(capsys.readouterr().out)
        assert (
            result["run"] == "run"
            and result["num_images"] == number
            and result["num_samples"] == 10
        )
    after = json.loads((run / "results.json").read_text())
    assert after["training"] == before["training"]
    assert after["evaluations"][0] == before["evaluations"][0]
    assert [each["split"] for each in after["evaluations"]] == ["test", "test", "valid"]


def test_evaluate_repeats_the_number_of_the_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "evaluate",
                "run",
                "--num-samples",
                "20",
                "--num-images",
                "40",
                "--quiet",
                "--compile",
                "off",
            ]
        )
        == 0
    )
    assert "IW-20, N = 40" in capsys.readouterr().out
    first, again = json.loads((run / "results.json").read_text())["evaluations"]
    for own in ("time", "seconds", "commit"):
        first.pop(own), again.pop(own)
    assert first == again


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (
            ("valid_fraction = 0.1", "valid_fraction = 0.0"),
            "evaluate run --split valid",
            "validation images",
        ),
        (("", ""), "evaluate run --num-images 400", "359"),
        (('data = "digits"', 'data = "other.npz"'), "evaluate run", "not the data"),
        (("", ""), "sample run --out taken.png", "exists"),
        (("", ""), "sample run --out picture.jpg", ".png"),
        (("", ""), "plot run manifld", "did you mean 'manifold'"),
    ],
)
def test_mistakes_about_a_run(
    change: tuple[str, str],
    arguments: str,
    words: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace(*change) if change[0] else config.read_text())
    np.savez("other.npz", images=np.zeros((300, 4, 4), np.uint8))
    Path("taken.png").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_sample_and_plot_write_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    assert main(["sample", "run", "-n", "9", "--out", "nine.png"]) == 0
    assert capsys.readouterr().out == "nine.png\n"
    assert main(["plot", "run", "curves", "samples"]) == 0
    assert capsys.readouterr().out == "run/curves.png\nrun/samples.png\n"
    for path in ("nine.png", "run/curves.png", "run/samples.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 50


def test_runs_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    shutil.copytree(run, "other")
    for out, path in ((["--out", "both.png"], "both.png"), ([], "run/beside.png")):
        assert main(["plot", "run", "latent", "--beside", "other", *out]) == 0
        assert capsys.readouterr().out == f"{path}\n"
        with Image.open(path) as picture:
            assert picture.width > 1.5 * picture.height  # two square scatters
    for words, message in (
        ("plot run --beside run", "a run folder is given twice"),
        ("plot run --out both.png", "give the other runs with --beside"),
        ("plot run --beside other --out both.png", "both.png exists"),
        ("plot run manifld --beside other", "did you mean 'manifold'"),
    ):
        assert main(words.split()) == 2 and message in capsys.readouterr().err


def test_list_shows_every_slot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert parts.keys() == NAMESPACES.keys()
    for slot, name in (
        ("guide", "MeanField"),
        ("likelihood", "Bernoulli"),
        ("data", "digits"),
        ("optimizer", "Adam"),
    ):
        found = {part["name"]: part for part in parts[slot]}
        assert found[name]["summary"] and set(found[name]) == {"name", "summary", "arguments"}
    assert main(["list", "guide"]) == 0
    out = capsys.readouterr().out
    assert "MeanField" in out and "Bernoulli" not in out
