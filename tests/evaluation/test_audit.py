"""`pyro-vae audit`: its script has the engine's log weights by stock Pyro, where this package is
not installed.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import pytest
import torch

from pyro_vae.cli.entry import main

SHORT = [
    "--net",
    "MLP(hidden=16)",
    "--latent-dim",
    "3",
    "--num-samples",
    "20",
    "--eval-images",
    "30",
    "--steps",
    "20",
]
SHORT += ["--compile", "off", "--no-pictures", "--quiet"]

FOREIGN = """
import pyro, torch
from pyro import distributions as dist
from pyro_vae.guides import AmortizedGuide

class Model(torch.nn.Module):
    def __init__(self, event_shape, latent_dim):
        super().__init__()
        self.shape, self.latent_dim, self.net = event_shape, latent_dim, torch.nn.Linear(latent_dim, 64)

    def forward(self, x):
        with pyro.plate("images", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, self.latent_dim), 1.0).to_event(1))
            with pyro.plate("pixels", 64, dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=self.net(z.squeeze(-2))), obs=x.reshape(len(x), 64))

class Guide(AmortizedGuide):
    def __init__(self, event_shape, latent_dim, net="MLP", **net_args):
        super().__init__(event_shape, latent_dim, latent_dim, net, **net_args)

    def forward(self, x):
        with pyro.plate("images", len(x), dim=-2):
            pyro.sample("z", dist.Normal(self.local(x).unsqueeze(-2), 0.7).to_event(1))

    def build(self, eta):
        raise NotImplementedError
"""

WITHOUT_THE_PACKAGE = """
import os, runpy, sys
sys.path += {folders}
import pyro, torch
for run in map(str.strip, sys.stdin):
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(run + "/" + name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.chdir(os.path.dirname(run))
    try:
        runpy.run_path(run + "/audit.py", run_name="__main__")
    finally:
        files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "pyro_vae"]
        assert files and all(file is None or file.startswith(run + "/audit") for file in files), files
    break
"""


Audited = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def audited() -> Iterator[Audited]:
    """Runs a run's script where torch and Pyro can be imported and nothing that this environment
    has installed besides: in a fork of an interpreter that has imported these two.
    """
    folders = sorted({str(Path(str(package.__file__)).parents[1]) for package in (torch, pyro)})
    code = WITHOUT_THE_PACKAGE.format(folders=folders)
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stock:
        assert stock.stdin is not None and stock.stdout is not None
        into, out_of = stock.stdin, stock.stdout

        def audited(run: Path) -> subprocess.CompletedProcess[str]:
            print(run, file=into, flush=True)
            code = int(out_of.readline())
            said = [(run / name).read_text() for name in ("out", "err")]
            return subprocess.CompletedProcess("audit.py", code, *said)

        yield audited
        into.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with the default parts, audited."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    assert main(["train", *SHORT, "--out", str(folder)]) == 0 == main(["audit", str(folder)])
    yield folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def check(run: Path, audited: Audited) -> None:
    """Sixty lines that import nothing else, every image in a line of its own, all of them equal."""
    source = (run / "audit.py").read_text()
    assert len(source.splitlines()) <= 60
    done = audited(run)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    images = [line.split() for line in lines if line.startswith("image ")]
    data = torch.load(run / "audit" / "data.pt", weights_only=True)
    assert [int(words[1]) for words in images] == list(range(20)) and data["log_weights"].shape == (
        20,
        5,
    )
    assert [float(words[2]) for words in images] == pytest.approx(
        data["log_weights"][:, 0].tolist(), abs=1e-5
    )
    assert all(abs(float(words[2]) - float(words[3])) < 1e-3 for words in images)
    assert lines[-1].startswith("largest difference") and float(lines[-1].split()[2]) < 1e-3


def test_a_run_s_log_weights_are_stock_pyro_s_where_the_package_is_not_installed(
    run: Path, audited: Audited
) -> None:
    check(run, audited)
    tree = ast.parse((run / "audit.py").read_text())
    imported = {each.module or "" for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    imported |= {
        name.name for each in ast.walk(tree) if isinstance(each, ast.Import) for name in each.names
    }
    parts = {name for name in imported if name.startswith("pyro_vae.")}
    assert imported - parts == {"sys", "pathlib", "pyro", "torch"}
    assert all(name.split(".")[1] in ("models", "guides", "nn") for name in parts)
    copies = {path.relative_to(run / "audit").as_posix() for path in (run / "audit").rglob("*.py")}
    assert "pyro_vae/models/bernoulli.py" in copies
    wings = {name.split("/")[1] for name in copies if name.count("/") == 2}
    assert wings == {
        "models",
        "guides",
        "nn",
        "choices",
    }  # parts, and how they are named: no engine


def test_a_foreign_pair_with_its_own_plates(
    audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my pair.py").write_text(FOREIGN)
    pair = ["--model", "my pair.py:Model", "--guide", "my pair.py:Guide", "--binarize", "threshold"]
    assert (
        main(["train", *SHORT, *pair, "--objective", "Trace_ELBO", "--out", "run"])
        == 0
        == main(["audit", "run"])
    )
    assert Path("run/audit/file_my_pair.py").read_text() == FOREIGN
    check(tmp_path / "run", audited)


@pytest.mark.parametrize(
    "what",
    ["weights", *(pytest.param(w, marks=pytest.mark.slow) for w in ("log weights", "draws"))],
)
def test_what_was_tampered_with_is_found(what: str, run: Path, audited: Audited) -> None:
    path = (
        next((run / "checkpoints").glob("step-*.pt"))
        if what == "weights"
        else run / "audit" / "data.pt"
    )
    held = torch.load(path, weights_only=True)
    if what == "weights":
        held["sections"]["model"]["likelihood.net.layers.2.bias"][40] += 0.02
    elif what == "log weights":
        held["log_weights"][7, 2] += 0.002
    else:
        held["latents"]["z"][3, 11] *= 1.01
    torch.save(held, path)
    done = audited(run)
    assert done.returncode == 1 and "differs by more than that" in done.stderr


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        pytest.param(["--guide", "PerDatum"], "no q(z | x) of test images", marks=pytest.mark.slow),
        pytest.param(
            ["--guide", "SemiAmortized"], "imports pyro_vae's own code", marks=pytest.mark.slow
        ),
        pytest.param(["--guide", "Planar"], "only at its own last draw", marks=pytest.mark.slow),
        (["--model", "GaussianMixture(components=2)", "--guide", "Empty"], "summed out"),
    ],
)
def test_what_can_t_be_audited_is_said_in_a_line(
    parts: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    short = SHORT[4:] if "Empty" in parts else SHORT[2:]  # a mixture has no z
    assert main(["train", *short, *parts, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["audit", str(run)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (run / "audit.py").exists()


def test_no_run_no_checkpoint_no_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["audit", str(run.parent / "gone")]) == 2
        and "no such run folder" in capsys.readouterr().err
    )
    config = run / "config.toml"
    whole = config.read_text()
    config.write_text(whole.replace('data = "digits"', 'data = "gone.npz"'))
    assert main(["audit", str(run)]) == 2 and "gone.npz" in capsys.readouterr().err
    config.write_text(whole)
    shutil.rmtree(run / "checkpoints")
    assert main(["audit", str(run)]) == 2 and "no checkpoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ["--guide", "IAF(depth=2)"],
        ["--guide", "Householder", "--prior", "FlowPrior"],
        ["--prior", "VampPrior(components=4)", "--guide", "FullRank"],
        [
            "--prior",
            "MixtureOfGaussians(components=3)",
            "--guide",
            "MixtureOfGaussians",
            "--objective",
            "Trace_ELBO",
        ],
        ["--model", "Hierarchical(latent_dims=(4, 2))", "--guide", "TopDown"],
        ["--model", "ClassConditional", "--guide", "ClassConditional"],
        ["--model", "ClassConditional", "--guide", "ClassConditional(guide=NSF(depth=2))"],
        ["--model", "LinearGaussian", "--guide", "ExactPosterior"],
        ["--net", "Conv(channels=(8,))", "--likelihood", "Gaussian(scale=learned)"],
        ["--likelihood", "DiscretizedLogistic(components=2)", "--binarize", "none"],
    ],
    ids=" ".join,
)
def test_every_kind_of_part(parts: list[str], tmp_path: Path, audited: Audited) -> None:
    run, short = (
        tmp_path / "run",
        SHORT[2:] if "--net" in parts or "LinearGaussian" in parts else SHORT,
    )
    assert main(["train", *short, *parts, "--out", str(run)]) == 0 == main(["audit", str(run)])
    check(run, audited)
