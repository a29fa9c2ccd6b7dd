"""The harness of published results: configurations, budgets, verdicts and resuming, on the embedded
digits. Nothing is timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reproduce import __main__ as command
from benchmarks.reproduce import cells as run_cells
from benchmarks.reproduce import results, tables
from benchmarks.reproduce.__main__ import Reproduce, run
from benchmarks.reproduce.budget import Budget, full_steps, read_budget
from benchmarks.reproduce.tables import CONFIGS, IWAE, TABLES, Published, Row, Table
from pyro_vae.choices import lookup, registry, specs
from pyro_vae.cli.entry import main as pyro_vae
from pyro_vae.errors import UserError
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.config_file import to_toml, train_from
from pyro_vae.runs.options import Train
from pyro_vae.signals import Stopped
from pyro_vae.training.schedules import Schedule

MNIST = 60_000
CELLS = sorted({cell for table in TABLES.values() for cell in table.cells})


def dense(*widths: int) -> int:
    """Weights and biases of affine layers between these widths."""
    return sum((a + 1) * b for a, b in pairwise(widths))


def parameters(cell: str, *shape: int) -> tuple[int, int]:
    """Of the model and the guide."""
    model, guide = build_pair(train_from(CONFIGS / f"{cell}.toml"), shape, 1000, levels=2)
    return sum(each.numel() for each in model.parameters()), sum(
        each.numel() for each in guide.parameters()
    )


# ---- configurations


def test_every_configuration_is_a_cell_and_every_cell_has_one() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.toml")) == CELLS


@pytest.mark.parametrize("cell", CELLS)
def test_every_configuration_is_read_and_names_parts_that_exist(cell: str) -> None:
    options = train_from(CONFIGS / f"{cell}.toml")
    assert options.seed == options.data_seed == 0
    for slot in (
        "model",
        "prior",
        "likelihood",
        "guide",
        "objective",
        "net",
        "optimizer",
        "schedule",
    ):
        lookup.resolve(slot, specs.parse(getattr(options, slot)).name)


@pytest.mark.parametrize("cell", [cell for cell in IWAE.cells if "-l1-" in cell])
def test_one_layer_has_the_published_parameters(cell: str) -> None:
    assert parameters(cell, 1, 28, 28) == (dense(50, 200, 200, 784), dense(784, 200, 200, 100))


@pytest.mark.parametrize("cell", [cell for cell in IWAE.cells if "-l2-" in cell])
def test_two_layers_have_the_published_parameters(cell: str) -> None:
    model = dense(50, 100, 100, 200) + dense(100, 200, 200, 784)
    assert parameters(cell, 1, 28, 28) == (
        model,
        dense(784, 200, 200, 200) + dense(100, 100, 100, 100),
    )


@pytest.mark.parametrize("z", tables.MNIST_LATENTS)
def test_aevb_on_mnist_has_the_published_parameters(z: int) -> None:
    assert parameters(f"aevb-mnist-z{z}", 1, 28, 28) == (dense(z, 500, 784), dense(784, 500, 2 * z))


@pytest.mark.parametrize("z", tables.FREY_LATENTS)
def test_aevb_on_frey_faces_has_the_published_parameters(z: int) -> None:
    assert parameters(f"aevb-frey-z{z}", 1, 28, 20) == (
        dense(z, 200, 2 * 560),
        dense(560, 200, 2 * z),
    )


def test_the_other_architectures_have_the_published_parameters() -> None:
    gated = 2 * dense(784, 300) + 2 * dense(300, 300) + dense(300, 80)
    decoder = 2 * dense(40, 300) + 2 * dense(300, 300) + dense(300, 784)
    assert parameters("vamp-standard", 1, 28, 28) == (decoder, gated)
    assert parameters("vamp-vampprior", 1, 28, 28) == (decoder + 500 * 784, gated)
    assert parameters("altosaar-mean-field", 1, 28, 28) == (
        dense(128, 256, 256, 784),
        dense(784, 256, 256, 256),
    )


def test_vae_and_iwae_share_the_cells_of_one_draw() -> None:
    assert len(IWAE.rows) == 12 and len(IWAE.cells) == 10
    assert all(("k1" in row.cell) == (row.name.split(",")[1] == " k = 1") for row in IWAE.rows)


def test_an_iwae_cell_starts_as_published() -> None:
    options = train_from(CONFIGS / "burda-l2-iwae-k50.toml")
    model, guide = build_pair(options, (1, 28, 28), MNIST)
    assert [each.waits_for_data for each in model.modules() if hasattr(each, "waits_for_data")] == [
        True
    ]
    for layer in (*model.modules(), *guide.modules()):
        if isinstance(layer, torch.nn.Linear):
            limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert not layer.bias.any() and 0.9 * limit < layer.weight.abs().max() <= limit
    optimizer: Any = registry.build(
        "optimizer", options.optimizer, params=list(model.parameters()), lr=1e-3
    )
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-4


@pytest.mark.parametrize("cell", IWAE.cells)
def test_the_iwae_schedule_is_published(cell: str) -> None:
    options = train_from(CONFIGS / f"{cell}.toml")
    assert full_steps(options, MNIST) == 3280 * 3000
    schedule: Schedule = registry.build("schedule", options.schedule)
    first = 0
    for stage in range(8):
        passes = 3**stage
        for at in (first, first + passes - 1 / 3000):
            rate = options.learning_rate * schedule(at / 3280)
            assert rate == pytest.approx(1e-3 * 10 ** (-stage / 7), rel=1e-12)
        first += passes
    assert first == 3280


def test_a_paper_orders_rows_that_the_table_has() -> None:
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        assert all(a in names and b in names and a != b for a, b in table.better)
        assert all(cell in table.cells for picture in table.pictures for cell in picture.cells)


# ---- budgets


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (None, "full"),
        ("30", "30-passes"),
        ("1 pass", "1-passes"),
        (" 20000 steps", "20000-steps"),
        ("10%", "10-percent"),
    ],
)
def test_a_budget_is_read(text: str | None, label: str) -> None:
    assert read_budget(text).label == label


@pytest.mark.parametrize("text", ["", "0", "ten passes", "-3", "3 epochs", "2.5", "0%"])
def test_a_bad_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected passes over the training set, steps, or a share"):
        read_budget(text)


def test_every_budget_has_a_label_of_its_own() -> None:
    each = [
        *(
            Budget(),
            Budget(seed=1),
            Budget(passes=2),
            Budget(steps=2),
            Budget(passes=2, num_samples=5),
        ),
        *(
            Budget(passes=2, num_images=5),
            Budget(passes=2, seed=5),
            Budget(passes=25),
            Budget(percent=2),
            Budget(steps=2, seed=1),
        ),
    ]
    assert len({budget.label for budget in each}) == len(each)


def test_a_budget_shortens_the_schedule_and_the_warmup_in_proportion() -> None:
    published = Train(
        data="mnist", epochs=100, batch_size=100, kl_warmup=20.0, valid_fraction=1 / 6
    )
    options = Budget(passes=10, num_samples=7).options(published, MNIST, 10_000)
    assert (options.steps, options.epochs, options.kl_warmup, options.num_samples) == (
        5000,
        None,
        2.0,
        7,
    )
    assert Budget(steps=500).options(published, MNIST, 10_000).steps == 500
    assert Budget(percent=3).options(published, MNIST, 10_000).steps == 1500
    assert Budget(seed=3).options(published, MNIST, 10_000) == replace(published, seed=3)


def test_so_many_test_images_or_all_where_there_are_fewer() -> None:
    found = Budget(steps=5, num_images=500)
    assert found.options(Train(), 1000, 501).eval_images == 500
    assert found.options(Train(), 1000, 196).eval_images is None


def test_a_budget_longer_than_the_paper_is_refused() -> None:
    with pytest.raises(UserError, match="longer than the published training"):
        Budget(passes=101).options(Train(epochs=100), 1000, 100)


def test_the_full_schedule_takes_no_shorter_evaluation() -> None:
    with pytest.raises(UserError, match="give --samples and --images with a --budget"):
        read_budget(None, num_samples=10)


# ---- verdicts


@pytest.mark.parametrize(
    ("mean", "full", "passed"),
    [
        (-85.9, True, True),
        (-86.75, True, True),
        (-85.25, True, True),
        (-86.76, True, False),
        (-85.2, True, False),
        (nan, True, False),
        (-86.0, False, None),
        (-99.0, False, None),
    ],
)
def test_a_verdict_is_the_tolerance_and_only_of_the_full_schedule(
    mean: float, full: bool, passed: bool | None
) -> None:
    found = results.verdict(mean, Published(-86.0, 0.75), full)
    assert found["passed"] is passed and found["published"] == -86.0
    assert bool(found["why"]) == (passed is not True)


def test_nothing_published_is_not_judged() -> None:
    assert results.verdict(-80.0, None, True)["passed"] is None


# ---- running, on the embedded digits

TINY = """
data = "digits"
net = "MLP(hidden=(8,))"
guide = "{guide}"
objective = "{objective}"
latent_dim = 2
epochs = {epochs}
batch_size = 200
valid_fraction = 0.0
num_samples = 20
eval_images = 40
pictures = false
"""


class Finished:
    """A command of `pyro-vae`, run in this process when it is started."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        """The exit code."""
        return self.code

    def stop(self) -> None:
        """It has ended."""

    def wait(self) -> None:
        """It has ended."""


class Counting:
    """Starts commands, and remembers them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, arguments: Sequence[str]) -> Finished:
        """Run it to its end."""
        self.commands.append(list(arguments))
        return Finished(pyro_vae(arguments))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    """A table of three rows over two cells of the digits, and the command for it."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "plain.toml").write_text(
        TINY.format(guide="MeanField", objective="Trace_ELBO", epochs=4)
    )
    (configs / "tight.toml").write_text(
        TINY.format(guide="MeanField", objective="IWAE(num_particles=3)", epochs=4)
    )
    (configs / "auto.toml").write_text(
        TINY.format(guide="PointEstimate", objective="Trace_ELBO", epochs=4)
    )
    rows = (
        Row("VAE", "plain", Published(-25.0, 20.0)),
        Row("VAE again", "plain", Published(25.0, 1.0)),
        Row("IWAE", "tight"),
    )
    table = Table("tiny", "Digits", "nobody", rows, better=(("IWAE", "VAE"),), units=True)
    monkeypatch.setattr(tables, "CONFIGS", configs)
    for module in (tables, run_cells, command):
        monkeypatch.setattr(
            module,
            "TABLES",
            {"tiny": table, "other": Table("other", "AE", "", (Row("AE", "auto"),))},
        )
    return Reproduce(
        ("tiny",),
        out=tmp_path / "runs",
        results=tmp_path / "results",
        device="cpu",
        compile="off",
        quiet=True,
    )


def held(options: Reproduce, name: str) -> dict[str, Any]:
    """A table that was written."""
    found: dict[str, Any] = json.loads((options.results / name).read_text(encoding="utf-8"))
    return found


def test_cells_are_trained_scored_judged_and_not_run_again(
    tiny: Reproduce, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Counting()
    assert run(tiny, start) == 0
    assert [each[0] for each in start.commands] == ["train", "train"]
    found = held(tiny, "reproduce_tiny.json")
    vae, again, iwae = found["rows"]
    assert (found["budget"], found["done"], found["judged"], found["passed"]) == ("full", 3, 2, 1)
    assert vae["passed"] is True and again["passed"] is False and iwae["passed"] is None
    assert vae["steps"] == vae["steps_published"] == 4 * 8 and vae["schedule"] == "published"
    assert again["log_px"] == vae["log_px"] and again["miss"] == pytest.approx(
        vae["log_px"]["mean"] - 25
    )
    assert set(vae["active_units"]) == {"z"} and vae["hardware"]["device"].startswith("cpu")
    assert vae["protocol"]["num_samples"] == 20 and "data_root" not in vae["config"]
    (pair,) = found["differences"]
    assert (
        pair["difference"] == pytest.approx(iwae["log_px"]["mean"] - vae["log_px"]["mean"])
        and pair["se"] > 0
    )
    shown = capsys.readouterr().out
    assert "MISSED" in shown and "2 of 3" not in shown and "1 of 2 within the tolerance" in shown
    assert run(tiny, start) == 0 and len(start.commands) == 2
    assert held(tiny, "reproduce_tiny.json") == found


def test_budgets_have_folders_files_and_no_verdict_of_their_own(tiny: Reproduce) -> None:
    start, short = (
        Counting(),
        replace(tiny, names=("plain",), budget="1 pass", samples=5, images=10),
    )
    assert run(short, start) == 0 and len(start.commands) == 1
    label = "1-passes-K5-N10"
    found = held(tiny, f"reproduce_tiny.{label}.json")
    assert (
        not (tiny.results / "reproduce_tiny.json").exists()
        and (tiny.out / label / "plain").is_dir()
    )
    assert found["budget"] == label and found["judged"] == 0
    assert (
        found["rows"][0]["schedule"] == "shortened to 8 of 32 steps"
        and found["rows"][0]["passed"] is None
    )
    assert [each["state"] for each in found["rows"]] == ["done", "done", "not run"]


def test_results_of_another_budget_are_never_written_over(tiny: Reproduce) -> None:
    tiny.results.mkdir()
    path = tiny.results / "reproduce_tiny.json"
    path.write_text(json.dumps({"table": "tiny", "budget": "1-passes", "rows": []}))
    start = Counting()
    with pytest.raises(UserError, match="never mixed"):
        run(tiny, start)
    assert not start.commands


def test_a_folder_with_a_run_of_other_options_is_refused(tiny: Reproduce) -> None:
    short = replace(tiny, names=("plain",), budget="3 steps", samples=5, images=10)
    assert run(short, Counting()) == 0
    folder = tiny.out / "3-steps-K5-N10" / "plain"
    (folder / "config.toml").write_bytes(
        to_toml(replace(train_from(folder / "config.toml"), latent_dim=3))
    )
    start = Counting()
    with pytest.raises(UserError, match="latent_dim = 3, not 2"):
        run(short, start)
    assert not start.commands


def test_a_stopped_cell_goes_on_where_it_was(tiny: Reproduce) -> None:
    """The first command is stopped after its first epoch, as by a signal; the second resumes, and
    nothing is trained twice.
    """
    whole, short = (
        Counting(),
        replace(tiny, names=("plain",), budget="3 passes", samples=5, images=10),
    )
    assert run(replace(short, out=tiny.out / "whole", results=tiny.results / "whole"), whole) == 0

    class Interrupted(Counting):
        def __call__(self, arguments: Sequence[str]) -> Finished:
            import signal

            from pyro_vae.runs.fit_run import Recorder

            keep = Recorder.__call__

            def after_an_epoch(self: Any, end: Any) -> None:
                keep(self, end)
                signal.raise_signal(signal.SIGTERM)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Recorder, "__call__", after_an_epoch)
                return super().__call__(arguments)

    with pytest.raises(Stopped) as stopped:
        run(short, Interrupted())
    assert stopped.value.exit_code == 143
    part = held(tiny, "reproduce_tiny.3-passes-K5-N10.json")["rows"][0]
    assert (part["state"], part["steps"], part["steps_wanted"]) == ("in progress", 8, 24)
    start = Counting()
    assert run(short, start) == 0
    assert [each[:2] for each in start.commands] == [["train", "--resume"]]
    done = held(tiny, "reproduce_tiny.3-passes-K5-N10.json")["rows"][0]
    expected = held(
        replace(tiny, results=tiny.results / "whole"), "reproduce_tiny.3-passes-K5-N10.json"
    )["rows"][0]
    assert done["resumed"] == 1 and done["log_px"] == expected["log_px"]


def test_rows_of_earlier_runs_stay_in_the_table(tiny: Reproduce) -> None:
    short = replace(tiny, budget="3 steps", samples=5, images=10)
    assert run(replace(short, names=("plain",)), Counting()) == 0
    assert run(replace(short, names=("tight",)), Counting()) == 0
    found = held(tiny, "reproduce_tiny.3-steps-K5-N10.json")
    assert [each["state"] for each in found["rows"]] == ["done"] * 3 and found["done"] == 3


def test_an_autoencoder_stays_in_its_table_without_log_px(tiny: Reproduce) -> None:
    assert (
        run(replace(tiny, names=("other",), budget="3 steps", samples=5, images=10), Counting())
        == 0
    )
    (found,) = held(tiny, "reproduce_other.3-steps-K5-N10.json")["rows"]
    assert found["reconstruction_error"] > 0 and "log_px" not in found and found["passed"] is None


def test_data_that_are_not_there_leave_a_row_with_the_reason(
    tiny: Reproduce, tmp_path: Path
) -> None:
    text = (tables.CONFIGS / "tight.toml").read_text().replace('"digits"', '"static-mnist"')
    (tables.CONFIGS / "tight.toml").write_text(text)
    short = replace(tiny, budget="3 steps", samples=5, images=10, data_root=tmp_path)
    assert run(short, Counting()) == 1
    rows = held(tiny, "reproduce_tiny.3-steps-K5-N10.json")["rows"]
    assert [each["state"] for each in rows] == ["done", "done", "not run"] and "static" in rows[2][
        "why"
    ]
    assert "DATA_ROOT" in rows[2]["why"] and str(tmp_path) not in json.dumps(rows)


def test_a_command_that_fails_leaves_a_row_with_the_reason(tiny: Reproduce) -> None:
    assert run(replace(tiny, names=("plain",)), lambda arguments: Finished(1)) == 1
    row = held(tiny, "reproduce_tiny.json")["rows"][0]
    assert row["state"] == "not run" and "exit code 1" in row["why"]


def test_unknown_names_are_told(tiny: Reproduce) -> None:
    with pytest.raises(UserError, match="did you mean"):
        run(replace(tiny, names=("plan",)), Counting())


def test_the_plan_runs_nothing(tiny: Reproduce, capsys: pytest.CaptureFixture[str]) -> None:
    start = Counting()
    assert run(replace(tiny, budget="2 passes", plan=True), start) == 0
    assert "| plain | 32 | 16 | 200 | 0 |" in capsys.readouterr().out and not start.commands


# ---- parts of its own


def test_digits_in_colour_are_made_the_same_each_time() -> None:
    from benchmarks.reproduce.data_sets import _coloured

    images = torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8)
    made, again = (_coloured(images, torch.Generator().manual_seed(0)) for _ in range(2))
    assert made.shape == (6, 3, 32, 32) and made.dtype == torch.uint8 and torch.equal(made, again)
    corner = made[:, :, 0, 0]
    assert (corner <= 128).all()  # the paper's colour, darker than any ink


@pytest.mark.slow
def test_a_child_writes_a_checkpoint_when_it_is_stopped(tmp_path: Path) -> None:
    import time

    from benchmarks.reproduce.work import Child

    folder = tmp_path / "run"
    child = Child(
        [
            "train",
            "--steps",
            "1000000",
            "--out",
            str(folder),
            "--device",
            "cpu",
            "--compile",
            "graph",
            "--quiet",
        ]
    )
    for _ in range(600):
        if (folder / "metrics.jsonl").is_file():
            break
        time.sleep(0.1)
    child.stop()
    child.wait()
    assert child.poll() == 143 and list((folder / "checkpoints").glob("*.pt"))
