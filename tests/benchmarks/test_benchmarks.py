"""The benchmarks' contestants do the same work, and a compiled epoch reads the device once. Nothing
is timed.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor

from benchmarks import (
    coverage,
    epochs,
    equality,
    estimators,
    evaluation,
    gpu_checks,
    gradient_snr,
    harness,
    memory,
    missing_values,
    seats,
    semi_supervised,
    startup,
    team,
    training_step,
)
from benchmarks.architectures import ARCHITECTURES, mlp
from benchmarks.contestants import Epochs, ours
from benchmarks.host_reads import host_reads, reads_per_epoch
from benchmarks.reproduce import __main__ as reproduce
from pyro_vae.cli import bench
from pyro_vae.cli.entry import main, parse
from pyro_vae.data.datasets import load
from pyro_vae.data.transforms import observe
from pyro_vae.errors import UserError
from pyro_vae.runs.options import SUITES, Bench

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
TINY = mlp("tiny", 16, (8,), 2, 10, "tanh")
UNCOMPILED = pytest.mark.filterwarnings("ignore")  # the other libraries' own warnings


def quick(names: list[str]) -> list[str]:
    """Without those that compile, which take too long for a test."""
    return [name for name in names if "compile" not in name and "inductor" not in name]


@UNCOMPILED
def test_contestants_arrive_at_the_same_loss_of_a_step() -> None:
    x = TINY.images(TINY.batch_size)
    makers = training_step.contestants(TINY, x)
    runners = {name: training_step.Runner(makers[name]()) for name in quick(list(makers))}
    found = training_step.same_training(
        TINY, x, {name: each.last_loss for name, each in runners.items()}, 100
    )
    assert len(found) >= 4


@UNCOMPILED
def test_contestants_arrive_at_the_same_loss_of_an_epoch() -> None:
    images = TINY.images(20 * TINY.batch_size)
    makers = epochs.contestants(TINY, images)

    def train(name: str, seed: int, num_epochs: int) -> Epochs:
        """Made where it is run: of two SVIs in one process the second would train what the first
        left in the store.
        """
        return epochs.Runner(makers[name]()).train(seed, num_epochs)

    found = epochs.same_training(
        TINY, images, {name: partial(train, name) for name in quick(list(makers))}, 3
    )
    assert len(found) >= 4


def test_a_contestant_that_does_other_work_is_found() -> None:
    x = TINY.images(TINY.batch_size)
    with pytest.raises(AssertionError, match="not within"):
        training_step.same_training(TINY, x, {"lazy": lambda seed, num_steps: 0.0}, 20)


@pytest.mark.slow
def test_a_seated_contestant_is_the_one_in_this_process() -> None:
    x = TINY.images(TINY.batch_size)
    here = training_step.Runner(training_step.contestants(TINY, x)[training_step.BASE]()).last_loss(
        3, 20
    )
    with seats.seated([training_step.BASE], training_step.runner, TINY, "cpu") as seated:
        seat = seated[training_step.BASE]
        assert seat.ask("last_loss", 3, 20) == here and seat.ask("seconds", 1) > 0
        with pytest.raises(RuntimeError, match="hand-written, eager: AttributeError"):
            seat.ask("fly")
        seat._process.kill()
        with pytest.raises(RuntimeError, match="has ended"):
            seat.ask("seconds", 1)


@UNCOMPILED
def test_contestants_estimate_the_same_log_px() -> None:
    model, guide, x = evaluation.trained_pair(20, "cpu")
    each = evaluation.contestants(model, guide, 500, ["float32"], "cpu")
    few = {name: evaluation.Contestant(each[name].log_px, 3) for name in quick(list(each))}
    found = {name: evaluation.Runner(contestant, x).mean() for name, contestant in few.items()}
    exact = ours.log_px(model, guide, x[:3], 500, "off")
    assert len(evaluation.assert_same_estimates(found, few, exact)) >= 4


@pytest.mark.skipif(not find_spec("numpyro"), reason="NumPyro is not installed (extra: bench)")
@pytest.mark.parametrize("name", ["digits b64", "conv b64"])
def test_the_numpyro_networks_are_the_torch_networks(name: str) -> None:
    import numpy as np

    from benchmarks.contestants import numpyro_svi

    at = ARCHITECTURES[name]
    encoder, decoder = at.networks()
    x, z = at.images(4), torch.randn(4, at.latent_dim)
    for network, given, pictures_in, pictures_out in (
        (encoder, x, True, False),
        (decoder, z, False, True),
    ):
        init, apply = numpyro_svi._network(network)
        found = torch.from_numpy(
            np.array(
                apply(
                    init(None, ())[1], numpyro_svi._images(given) if pictures_in else given.numpy()
                )
            )
        )
        expected = network(given).detach()
        torch.testing.assert_close(
            found.movedim(-1, 1) if pictures_out else found, expected, rtol=1e-3, atol=1e-4
        )


def test_reads_are_counted_by_operator_and_by_method() -> None:
    x = torch.arange(3.0)
    with host_reads() as seen:
        x.sum().item()
        x.tolist()
        bool((x > 0).all())
        _ = x + 1
    assert seen == ["_local_scalar_dense", "tolist", "_local_scalar_dense"]


def test_a_replayed_epoch_reads_the_device_once() -> None:
    images = TINY.images(5 * TINY.batch_size)
    assert reads_per_epoch(lambda num_epochs: ours.epochs(TINY, images, "graph")(num_epochs)) == 1


@pytest.mark.slow
def test_a_compiled_epoch_reads_the_device_once() -> None:
    from pyro_vae.compile.trace import missing_compiler

    if reason := missing_compiler(torch.device("cpu")):
        pytest.skip(reason)
    images = TINY.images(5 * TINY.batch_size)
    assert (
        reads_per_epoch(lambda num_epochs: ours.epochs(TINY, images, "inductor")(num_epochs)) == 1
    )


# ---- the command


class Cores(team.Team):
    """A machine whose cores lie apart in the turns that are named, by their numbers."""

    def __init__(self, apart: set[int]) -> None:
        self.apart, self.taken, self.patience, self.least = apart, 0, 0.0, 1.0

    def now(self) -> float:
        return 2.0 if self.taken in self.apart else 1.0

    def turn(self, run: Callable[[], float]) -> tuple[float, float]:
        self.taken += 1
        return run(), self.now()


@pytest.mark.parametrize(
    ("apart", "kept"),
    [
        (set(), [2.0, 3.0]),
        ({3}, [3.0, 4.0]),  # the second round, which is the first that counts, is repeated
        (set(range(99)), [float(n) for n in range(2, 2 + harness.MOST_ROUNDS * 2)]),
    ],
)
def test_rounds_with_the_cores_apart_are_repeated_and_left_out(
    monkeypatch: pytest.MonkeyPatch, apart: set[int], kept: list[float]
) -> None:
    monkeypatch.setattr(harness, "Team", lambda: Cores(apart))
    rounds = count(1)
    found = harness.interleave({"a": lambda: float(next(rounds)), "b": lambda: 7.0}, rounds=2)
    assert found["a"].seconds == kept and found["b"].seconds == [7.0] * len(kept)


def test_a_turn_waits_and_is_taken_again_until_the_cores_are_close() -> None:
    waited = team.Team()
    regions = iter(
        [2.0, 1.0, 2.0, 1.0, 1.0]
    )  # apart, close: the turn; apart after it; close: again; close after it
    waited.least, waited.now = 1.0, lambda: next(regions)  # type: ignore[method-assign]
    turns = count(1)
    assert waited.turn(lambda: float(next(turns))) == (2.0, 1.0)
    assert next(regions, None) is None and waited.patience < team.PATIENCE


def test_every_suite_has_a_file() -> None:
    assert all((FOLDER / f"{bench._FILES.get(suite, suite)}.py").exists() for suite in SUITES)
    assert bench.find_benchmarks() == FOLDER


def test_the_command_hands_its_options_on(tmp_path: Path) -> None:
    options = parse(["bench", "epochs", "--only", "iwae b20", "--rounds", "3", "--quick"])
    assert isinstance(options, Bench) and options.suites == ("epochs",)
    given = bench._arguments(options, tmp_path)
    assert given == [
        "iwae b20",
        "--rounds",
        "3",
        "--quick",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]


def test_outside_a_checkout_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "pyro_vae" / "bench.py"))
    with pytest.raises(UserError, match="clone the repository"):
        bench.find_benchmarks()
    assert main(["bench", "--quick"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_few_labels_by_hand_are_one_algorithm_with_the_parts() -> None:
    """The same weights, batches and noise: after two passes, one of them with a last small batch,
    the classes are those of `fit` to rounding.
    """
    data = load("digits", seed=0)
    seen = observe(data)
    y = torch.where(torch.arange(50) % 5 == 0, data.train_labels[:50], -1)
    asked = semi_supervised.SemiSupervised(epochs=2, batch_size=16, hidden=7, latent_dim=16)
    x = seen.x_train[:50].flatten(1)
    images, before, after = seen.x_test[:20].flatten(1), list[Tensor](), list[Tensor]()
    for _, classify, train in semi_supervised.trainings(x, y, seen.observe, asked, seed=3):
        before.append(torch.log_softmax(classify(images), -1).detach())
        train()
        after.append(torch.log_softmax(classify(images), -1).detach())
    torch.testing.assert_close(*before[:2])
    torch.testing.assert_close(*after[:2], rtol=1e-4, atol=1e-4)
    assert float((after[0] - before[0]).abs().max()) > 0.01


# ---- commands as they are printed

COMMANDS: dict[str, type[Any]] = {
    **{
        each.__name__.rpartition(".")[2]: harness.Options
        for each in (epochs, equality, evaluation, memory, startup)
    },
    "training_step": harness.Options,
    "coverage": coverage.Coverage,
    "estimators": estimators.Estimators,
    "gpu_checks": gpu_checks.Options,
    "gradient_snr": gradient_snr.GradientSNR,
    "missing_values": missing_values.MissingValues,
    "semi_supervised": semi_supervised.SemiSupervised,
    "reproduce": reproduce.Reproduce,
}
CASES: dict[str, Iterable[str]] = {
    "training": ARCHITECTURES,
    "epochs": epochs.BATCHES,
    "evaluation": evaluation.PRECISIONS,
    "memory": memory.CASES,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRINTED = [
    (path.name, line)
    for path in [*PAGES, *FOLDER.rglob("*.py")]
    for line in re.findall(
        r"((?:python3?|pyro-vae bench)\b[^`\n]*)", path.read_text(encoding="utf-8")
    )
    if line.startswith("pyro-vae bench") or "benchmarks" in line
]


def test_every_program_has_its_options() -> None:
    programs = {
        path.stem
        for path in FOLDER.glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert programs | {"reproduce"} == set(COMMANDS)


def test_printed_commands_are_understood() -> None:
    """Modules, options and cases exist; brackets and dots in a command's description stand for what
    is left out.
    """
    assert len(PRINTED) > 20
    for page, line in PRINTED:
        words = shlex.split(re.split(r"\s{2,}|, |\)|#|…|\[", line)[0])
        if words[:2] == ["pyro-vae", "bench"]:
            asked = parse(words[1:])
            assert isinstance(asked, Bench), (page, line)
            for suite in asked.suites:
                harness.chosen(asked.only, CASES.get(suite, ()))
            continue
        assert words[1] == "-m" and words[2].startswith("benchmarks."), (page, line)
        kind = COMMANDS[words[2].removeprefix("benchmarks.")]
        tyro.cli(kind, args=words[3:], config=(tyro.conf.FlagCreatePairsOff,))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # it is imported above
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed_and_nothing_is_started(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert not ended.value.code and capsys.readouterr().out.startswith("usage:")


def test_figures_go_where_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (
        coverage.Coverage(),
        estimators.Estimators(Path("RUN")),
        gradient_snr.GradientSNR(),
    ):
        assert options.out == Path("runs/bench")
    assert reproduce.Reproduce().results == harness.Options().folder == Path("runs/bench")
    assert (
        harness.Options(quick=True).folder is None
        and harness.Options(quick=True, out=tmp_path).folder == tmp_path
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(coverage, "rows", lambda repetitions: iter(()))
    coverage.main(coverage.Coverage())
    assert json.loads(Path("runs/bench/coverage.json").read_text())["rows"] == []
    assert harness.write("a", {"of": 1}, None) is None


def test_what_was_measured_on_this_machine_is_kept(tmp_path: Path) -> None:
    harness.write("a", {"one": 1, "two": 1}, tmp_path)
    harness.write("a", {"two": 2}, tmp_path)
    held = json.loads((tmp_path / "a.json").read_text())
    assert (held["one"], held["two"]) == (1, 2) and held["machine"] == harness.machine()


def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training_step", "digits"])
    with pytest.raises(SystemExit) as ended:
        harness.run_cli(training_step.main, harness.Options, "")
    said = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and said.startswith("error: unknown case 'digits'")
        and said.count("\n") == 1
    )
