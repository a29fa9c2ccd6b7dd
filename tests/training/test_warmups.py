"""KL warm-ups: their shares of β step by step, how they are written, and that training and the
command line follow them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae import fit
from pyro_vae.errors import UserError
from pyro_vae.runs.config_file import read_config, to_toml
from pyro_vae.runs.options import Train
from pyro_vae.training.kl_warmup import Cyclical, Linear, Warmup, make_warmup
from pyro_vae.training.train_step import TrainStep
from tests.support.pairs import binary_images, fresh

X = binary_images(20)


def shares(warmup: Warmup, total_steps: int, steps_per_epoch: int = 4) -> list[float]:
    return [warmup(step, total_steps, steps_per_epoch) for step in range(total_steps)]


def test_linear_rises_over_its_epochs() -> None:
    assert shares(Linear(1.5), 9, 4) == [min(1.0, step / 6) for step in range(9)]
    assert shares(Linear(0), 5) == [1.0] * 5


def test_cyclical_is_the_papers_formula() -> None:
    """β_t = min(1, τ / R), τ = mod(t, T/M) / (T/M): M equal cycles, each from 0, and 1 from its
    share R on.
    """
    total, cycles, ramp = 40, 4, 0.5
    found = shares(Cyclical(cycles, ramp), total)
    assert found == pytest.approx([min(1.0, (step % 10) / 10 / ramp) for step in range(total)])
    assert [found[i] for i in (0, 10, 20, 30)] == [0.0] * 4 and found[5:10] == [1.0] * 5
    assert shares(Cyclical(1, 1.0), 8) == pytest.approx([step / 8 for step in range(8)])
    odd = shares(Cyclical(3, 0.7), 10)  # a cycle is no whole number of steps
    assert min(odd) >= 0.0 and max(odd) == 1.0


def test_one_cycle_is_linear() -> None:
    assert shares(Cyclical(1, 0.25), 40, 4) == pytest.approx(shares(Linear(2.5), 40, 4))


@pytest.mark.parametrize(
    ("spec", "meaning"),
    [
        (0, Linear(0)),
        (2.5, Linear(2.5)),
        ("Linear(3)", Linear(3)),
        ("linear(epochs=3)", Linear(3)),
        ("cyclical", Cyclical()),
        ("Cyclical(cycles=2, ramp=0.8)", Cyclical(2, 0.8)),
        (Cyclical(5), Cyclical(5)),
        (Cyclical, Cyclical()),
    ],
)
def test_how_it_is_written(spec: Any, meaning: Warmup) -> None:
    assert make_warmup(spec) == meaning


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (-1, "kl_warmup=-1: expected a number of epochs"),
        (float("inf"), "kl_warmup=inf"),
        (True, "kl_warmup=True"),
        ("Cyclic", "did you mean 'Cyclical'"),
        ("Cyclical(cycles=0)", r"Cyclical\(cycles=0\)"),
        ("Cyclical(ramp=0)", r"Cyclical\(ramp=0\): expected a share"),
        ("Cyclical(epochs=3)", "epochs"),
        ([1, 2], "kl_warmup is a list"),
    ],
)
def test_what_it_can_not_be(spec: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(*fresh("PyroModules"), X, kl_warmup=spec, num_epochs=1, progress=False, device="cpu")


def test_training_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """β · share at each step, in the buffer that the step reads; a replayed graph trains to the
    same parameters.
    """
    seen: list[float] = []
    original = TrainStep.__call__

    def compute(self: Any, x: Tensor, fields: Any) -> Tensor:
        seen.append(float(self.loss.kl_weight))
        return original(self, x, fields)

    options = {
        "num_steps": 8,
        "batch_size": 10,
        "kl_weight": 0.5,
        "progress": False,
        "device": "cpu",
    }
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", compute)
        model, guide = fresh("PyroModules")
        fit(model, guide, X, kl_warmup="Cyclical(cycles=2)", compile="off", **options)  # type: ignore[arg-type]
    assert seen[-8:] == pytest.approx([0.0, 0.25, 0.5, 0.5] * 2)
    staged_model, staged_guide = fresh("PyroModules")
    fit(staged_model, staged_guide, X, kl_warmup=Cyclical(2), compile="graph", **options)  # type: ignore[arg-type]
    for a, b in zip(
        (*model.parameters(), *guide.parameters()),
        (*staged_model.parameters(), *staged_guide.parameters()),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [0.0, 2.5, "Cyclical(cycles=2)"])
def test_a_configuration_keeps_it(value: float | str, tmp_path: Path) -> None:
    options = Train(kl_warmup=value)
    options.check()
    path = tmp_path / "config.toml"
    path.write_bytes(to_toml(options))
    assert read_config(path)["kl_warmup"] == value
    path.write_text("kl-warmup = 3\n")
    assert read_config(path)["kl_warmup"] == 3.0


def test_the_command_line_reads_numbers_and_calls() -> None:
    from pyro_vae.cli.entry import parse

    assert parse(["train", "--kl-warmup", "3"]).kl_warmup == 3.0
    assert parse(["train", "--kl-warmup", "Cyclical(cycles=2)"]).kl_warmup == "Cyclical(cycles=2)"
