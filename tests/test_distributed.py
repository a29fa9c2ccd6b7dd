"""Several processes: they divide the images, take every step together, and end together; two of
them, over gloo.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae import distributed, guides, models
from pyro_vae.cli.entry import main
from pyro_vae.data.batches import Resident
from pyro_vae.data.loaders import Streamed
from pyro_vae.data.observations import Observation
from pyro_vae.errors import UserError
from pyro_vae.evaluation.result_files import load_estimate
from pyro_vae.runs import run_folder
from pyro_vae.runs.run_lock import hold
from pyro_vae.training import checkpoint_files
from pyro_vae.training.updates import Health, Update

CPU = torch.device("cpu")
IMAGES, PIXELS, BATCH = 101, 12, 8
PLAIN: dict[str, Any] = {"compile": "off", "progress": False, "device": "cpu", "seed": 3}

SMALL = ["--net", "MLP(hidden=16)", "--latent-dim", "2", "--num-samples", "500", "--eval-images", "30", "--no-pictures",
         "--compile", "off", "--device", "cpu", "--batch-size", "64", "--steps", "40"]  # fmt: skip
EVALUATE = [
    "run",
    "--num-samples",
    "500",
    "--num-images",
    "60",
    "--no-pictures",
    "--compile",
    "off",
    "--device",
    "cpu",
    "--quiet",
]

# ------------------------------------------------------------------------------------------
# How the images are divided


def rows_of(
    part: tuple[int, int], num_images: int, batch_size: int, epoch: int = 1
) -> list[Tensor]:
    """The rows of each batch of one pass."""
    source = Resident(torch.zeros(num_images, 2), {}, batch_size, CPU, part)
    found = list(source.rows(7, epoch))
    assert len(found) == source.num_batches
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_images", [12, 64, 65, 97, 101])
def test_each_process_takes_its_rows_of_each_batch(num_images: int, size: int) -> None:
    """Disjoint, as many in each process, together the batches of one process with R times the batch
    size.
    """
    parts = [rows_of((rank, size), num_images, BATCH) for rank in range(size)]
    lengths = [[len(rows) for rows in part] for part in parts]
    assert all(each == lengths[0] for each in lengths) and min(lengths[0]) > (
        1 if num_images // size > 1 else 0
    )
    every = Counter(torch.cat([torch.cat(part) for part in parts]).tolist())
    assert set(every.values()) == {1} and num_images - len(every) == num_images % size
    whole = torch.cat(rows_of((0, 1), num_images, BATCH * size))
    seen = torch.cat([torch.cat(batches) for batches in zip(*parts, strict=True)])
    done = 0
    for batches in zip(*parts, strict=True):
        number = sum(map(len, batches))
        assert set(torch.cat(batches).tolist()) == set(whole[done : done + number].tolist())
        done += number
    assert done == len(seen)


def test_the_order_differs_by_epoch_and_nothing_is_left_out_for_ever() -> None:
    left_out = [
        set(range(IMAGES)) - set(torch.cat([*rows_of((0, 2), IMAGES, BATCH, e), *rows_of((1, 2), IMAGES, BATCH, e)]).tolist())
        for e in (1, 2, 3)
    ]  # fmt: skip
    assert all(len(each) == 1 for each in left_out) and len(set.union(*left_out)) > 1


def test_a_stream_is_divided_as_a_tensor_is() -> None:
    x = torch.arange(IMAGES, dtype=torch.float32).unsqueeze(1).expand(-1, 2).contiguous()
    for part in ((0, 2), (1, 2)):
        resident, streamed = (
            Resident(x, {}, BATCH, CPU, part),
            Streamed(TensorDataset(x), BATCH, CPU, part),
        )
        assert resident.num_batches == streamed.num_batches
        for (a, _), (b, named) in zip(
            resident.shuffled(0, 2, 1), streamed.shuffled(0, 2, 1), strict=True
        ):
            assert torch.equal(a, b) and torch.equal(named["index"].float(), b[:, 0])
        assert sum(len(batch) for batch, _ in streamed.in_order()) == IMAGES


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(
        UserError,
        match="a DataLoader can't be divided among several processes, because it has its own order",
    ):
        Streamed(DataLoader(TensorDataset(torch.zeros(9, 2))), BATCH, CPU, (0, 2))
    with pytest.raises(UserError, match="3 images can't be divided among 4 processes"):
        Resident(torch.zeros(3, 2), {}, BATCH, CPU, (0, 4))


def test_one_process_is_a_group_that_does_nothing() -> None:
    group, x = distributed.current(), torch.randn(3)
    before, state = x.clone(), torch.get_rng_state()
    group.add(x)
    group.broadcast([x])
    group.begin_step(0, 1, torch.device("cpu"))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert (group.rank, group.size, group.first, group.reduce) == (0, 1, True, None)
    assert group.seed_of(5) == 5 and group.largest(1, 2) == (1, 2) and group.gather("a") == ["a"]
    assert (
        group.once(lambda: 4) == 4
        and group.after_the_first(lambda: 4) == 4
        and list(group.share(iter("ab"))) == ["a", "b"]
    )
    with distributed.begun("auto"):
        assert distributed.current().size == 1 and distributed.goes_on()


def test_every_process_reduces_the_same_list() -> None:
    """A parameter that this process's batch does not reach has a gradient of zeros there: another's
    may reach it.
    """

    def halved(gradients: Sequence[Tensor], sums: Tensor) -> None:
        torch._foreach_copy_(list(gradients), [gradient / 2 for gradient in gradients])
        sums.mul_(2)

    parameters = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(2))]
    update = Update(torch.optim.SGD(parameters, lr=1.0), parameters, Health.on(CPU), reduce=halved)
    sums = torch.ones(3, dtype=torch.float64)
    update(sums, [torch.ones(4), None])
    assert torch.equal(sums, torch.full((3,), 2.0, dtype=torch.float64))
    assert torch.equal(parameters[0].detach(), torch.full((4,), -0.5))
    assert parameters[1].grad is not None and torch.equal(parameters[1].detach(), torch.ones(2))


# ------------------------------------------------------------------------------------------
# Child processes


@contextmanager
def launched(folder: Path, *arguments: str, size: int = 2) -> Iterator[subprocess.Popen[str]]:
    """torchrun with these arguments; nothing of it is left behind."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONWARNINGS": "ignore",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
        *arguments,
    ]
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=err, text=True
        )
    try:
        yield child
    finally:
        left = workers(child)
        if child.poll() is None:
            child.kill()
            child.wait()
        for pid in left.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def torchrun(folder: Path, *arguments: str, size: int = 2) -> int:
    """The exit code of a run that is left to itself."""
    with launched(folder, *arguments, size=size) as child:
        return child.wait(120)


def workers(child: subprocess.Popen[str]) -> dict[int, int]:
    """Process numbers by rank."""
    found = {}
    with suppress(OSError):
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found.update(
                    {int(word[5:]): int(pid) for word in words if word.startswith(b"RANK=")}
                )
    return found


def until(child: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for something that the children are to do."""
    for _ in range(6000):
        if condition():
            return
        assert child.poll() is None, "the run ended"
        time.sleep(0.02)
    raise AssertionError("the children do not get there")


def said(folder: Path) -> list[str]:
    """Our own lines on stderr, torchrun's report left out; no process shows a traceback."""
    lines = (folder / "err").read_text().splitlines()
    assert not any("pyro_vae/" in line and line.lstrip().startswith("File") for line in lines), (
        lines
    )
    return [line for line in lines if re.match(r"error:|stopped by", line)]


def exit_codes(folder: Path) -> list[int]:
    """Those of the processes, as torchrun reports them."""
    return [int(code) for code in re.findall(r"exitcode  *: (-?\d+)", (folder / "err").read_text())]


# ------------------------------------------------------------------------------------------
# The laws of a training and of an evaluation, in two processes that each run `child` below


class Recording(Observation):
    """Binarization that remembers what it saw and which noise it drew."""

    fresh: ClassVar[bool] = True
    protocol = "recorded"

    def __init__(self) -> None:
        object.__setattr__(self, "levels", None)
        object.__setattr__(self, "seen", [])

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(batch.shape, generator=generator)
        self.seen.append((batch, noise))  # type: ignore[attr-defined]
        return (noise < batch).float()


class Normed(nn.Module):
    """A network with buffers that a step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(PIXELS, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, PIXELS) to (B, 4)."""
        found: Tensor = self.layers(x)
        return found


def pixels() -> Tensor:
    """Images of different grey, no two alike."""
    return torch.rand(IMAGES, PIXELS, generator=torch.Generator().manual_seed(1))


def deterministic() -> tuple[Any, Any]:
    """An autoencoder in float64: its loss is a function of the images."""
    torch.manual_seed(0)
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Gaussian(2, (PIXELS,), scale=1.0, hidden=8)
    )
    return model.double(), guides.PointEstimate((PIXELS,), 2, hidden=8).double()


def stochastic(seed: int = 0) -> tuple[Any, Any]:
    """A VAE whose encoder has a BatchNorm."""
    torch.manual_seed(seed)
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, (PIXELS,), hidden=8)
    )
    guide = guides.MeanField((PIXELS,), 2, hidden=8)
    guide.net = Normed()
    return model, guide


def state(*programs: Any) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {
        f"{i} {name}": t.clone()
        for i, p in enumerate(programs)
        for name, t in p.state_dict().items()
    }


def train_deterministic(batch_size: int) -> dict[str, Any]:
    """13 steps at R·B = 16, the last of each pass ragged; clipped, with a validation set."""
    pair, x = deterministic(), pixels().double()
    history = pv.fit(*pair, x[:100], "Trace_ELBO", num_steps=13, batch_size=batch_size, learning_rate=0.1, optimizer="SGD",
                     grad_clip=0.5, x_valid=x[40:], **PLAIN)  # fmt: skip
    records = [[r.loss, r.reconstruction, r.kl] for r in (*history.train, *history.valid)]
    return {"state": state(*pair), "records": torch.tensor(records, dtype=torch.float64)}


def score(pair: tuple[Any, Any]) -> dict[str, Any]:
    """log p(x) in three tiles."""
    ll = pv.log_marginal(*pair, pixels().round(), 500, device="cpu", compile="off", seed=4)
    tensors = {name: value for name, value in vars(ll).items() if isinstance(value, Tensor)}
    return {
        "tensors": tensors,
        "rest": [ll.curve, ll.protocol, list(ll.notes), ll.mean, ll.se_mc, str(ll)],
    }


def diverge(on_divergence: str) -> dict[str, Any]:
    """A training on images one of which overflows."""
    pair, x = deterministic(), pixels().double()
    x[17] = 1e200
    try:
        history = pv.fit(*pair, x[:100], "Trace_ELBO", num_steps=7, batch_size=BATCH, optimizer="SGD", learning_rate=1e-3,
                         on_divergence=on_divergence, **PLAIN)  # fmt: skip
    except pv.Diverged as error:
        return {"said": str(error), "step": error.step, "state": state(*pair)}
    return {"skipped": history.skipped, "state": state(*pair)}


def child(folder: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    with distributed.begun("cpu"):
        group = distributed.current()
        found: dict[str, Any] = {"deterministic": train_deterministic(BATCH)}
        pair, recording = (
            stochastic(group.rank),
            Recording(),
        )  # parameters of its own, which the first process's replace
        history = pv.fit(
            *pair,
            pixels(),
            num_steps=24,
            batch_size=BATCH,
            binarize=recording,
            x_valid=pixels(),
            **PLAIN,
        )
        found["stochastic"] = state(*pair)
        found["history"] = [vars(record) for record in (*history.train, *history.valid)]
        seen = recording.seen[-24:]  # type: ignore[attr-defined]
        found["seen"], found["noise"] = [x for x, _ in seen], [noise for _, noise in seen]
        streamed = stochastic()
        pv.fit(*streamed, TensorDataset(pixels().round()), num_steps=8, batch_size=BATCH, **PLAIN)
        resident = stochastic()
        pv.fit(*resident, pixels().round(), num_steps=8, batch_size=BATCH, **PLAIN)
        found["streamed"], found["resident"] = state(*streamed), state(*resident)
        found["graph"] = stochastic()
        pv.fit(
            *found["graph"],
            pixels().round(),
            num_steps=8,
            batch_size=BATCH,
            **{**PLAIN, "compile": "graph"},
        )
        found["graph"] = state(*found["graph"])
        found["log_px"] = score(pair)
        found["stop"], found["skip"] = diverge("stop"), diverge("skip")
        torch.save(found, folder / f"{group.rank}.pt")
    assert main(["train", *SMALL, "--out", "run"]) == main(["evaluate", *EVALUATE]) == 0


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have done all that `child` does; once, where pytest itself runs in
    several processes.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            assert torchrun(folder, str(Path(__file__).resolve()), str(folder)) == 0, (
                folder / "err"
            ).read_text()
    return folder


@pytest.fixture(scope="module")
def two(ran: Path) -> list[dict[str, Any]]:
    """What each of the two found."""
    return [torch.load(ran / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal names, equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(
    two: list[dict[str, Any]],
) -> None:
    """13 steps of an autoencoder in float64: the same gradients, clipped alike, and the same
    records, up to rounding.
    """
    expected = train_deterministic(2 * BATCH)
    for found in (each["deterministic"] for each in two):
        assert found["state"].keys() == expected["state"].keys()
        for name, value in expected["state"].items():
            assert torch.allclose(found["state"][name], value, rtol=1e-10, atol=1e-12), name
        assert torch.allclose(found["records"], expected["records"], rtol=1e-10)
    fresh = state(*deterministic())
    assert any(
        not torch.allclose(expected["state"][name], fresh[name], atol=1e-3) for name in fresh
    )


@pytest.mark.slow
def test_images_are_disjoint_noise_differs_and_parameters_stay_equal(
    two: list[dict[str, Any]],
) -> None:
    first, second = two
    assert same(first["stochastic"], second["stochastic"]) and first["history"] == second["history"]
    fresh = state(*stochastic())  # the first process's, trained
    assert not any(
        torch.equal(first["stochastic"][name], fresh[name]) for name in fresh if "weight" in name
    )
    rows = [
        {tuple(x.tolist()) for batch in each["seen"][:7] for x in batch} for each in two
    ]  # the first pass
    assert not rows[0] & rows[1] and len(rows[0]) == len(rows[1]) == IMAGES // 2
    for step in range(24):
        a, b = first["noise"][step], second["noise"][step]
        assert a.shape == b.shape and not torch.isin(a, b).any()
        assert step == 0 or not torch.isin(a, first["noise"][step - 1]).any()


@pytest.mark.slow
def test_streams_and_staged_steps_train_as_tensors_and_eager_ones_do(
    two: list[dict[str, Any]],
) -> None:
    for each in two:
        assert same(each["streamed"], each["resident"])
        assert same(each["graph"], two[0]["graph"])
        for name, value in each["graph"].items():
            assert torch.allclose(value, each["resident"][name], rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_an_evaluation_by_two_processes_is_that_of_one(two: list[dict[str, Any]]) -> None:
    pair = stochastic()
    for i, program in enumerate(pair):
        program.load_state_dict(
            {n[2:]: t for n, t in two[0]["stochastic"].items() if n[0] == str(i)}
        )
    expected = score(pair)
    for found in (each["log_px"] for each in two):
        assert found["rest"] == expected["rest"] and same(found["tensors"], expected["tensors"])
    assert len(expected["tensors"]["log_px"]) == IMAGES


@pytest.mark.slow
def test_what_is_not_finite_in_one_process_ends_or_skips_the_step_in_both(
    two: list[dict[str, Any]],
) -> None:
    first, second = two
    assert (
        first["stop"]["said"] == second["stop"]["said"]
        and first["stop"]["step"] == second["stop"]["step"] >= 1
    )
    assert (
        "the loss is" in first["stop"]["said"] and "it starts at site" in first["stop"]["said"]
    )  # whoever found it
    assert same(first["stop"]["state"], second["stop"]["state"])
    assert first["skip"]["skipped"] == second["skip"]["skipped"] == 1
    assert same(first["skip"]["state"], second["skip"]["state"])
    assert all(bool(value.isfinite().all()) for value in first["skip"]["state"].values())


# ------------------------------------------------------------------------------------------
# The command line under torchrun


def steps_saved(run: Path) -> list[int]:
    """Of the checkpoints that are complete."""
    return [
        int(path.stem.removeprefix("step-").split("-")[0])
        for path in checkpoint_files.complete(run / "checkpoints")
    ]


def files(folder: Path) -> set[str]:
    """All that a run has written."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics, without the clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in lines]


@pytest.mark.slow
def test_the_first_process_alone_writes_and_prints(ran: Path, tmp_path: Path) -> None:
    run = ran / "run"
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3] and rows(run)[-1]["step"] == 40
    results = json.loads((run / "results.json").read_text())
    assert len(results["evaluations"]) == 2 and results["training"]["steps"] == 40
    printed = (ran / "out").read_text()
    assert printed.count("log p(x) ≥") == printed.count("run: run") == 2
    assert (ran / "err").read_text().count("training step:") == 1
    assert main(["train", *SMALL[:-1], "3", "--quiet", "--out", str(tmp_path / "run")]) == 0
    ours, theirs = (
        {re.sub(r"\d{9}", "N", name) for name in files(each)} for each in (run, tmp_path / "run")
    )
    assert ours == theirs


@pytest.mark.slow
def test_evaluate_by_two_processes_stores_what_one_stores(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ran / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    file, trained = Path("run/evaluations/iw-test.npz"), run_folder.open_run("run").trained()
    two = load_estimate(file, trained)
    file.unlink()
    assert main(["evaluate", *EVALUATE]) == 0
    one = load_estimate(file, trained)
    assert one is not None and two is not None and one.num_images == 60
    for name in ("log_px", "se", "ess", "khat", "elbo_px", "max_weight_share", "debiased_px"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    evaluations = json.loads(Path("run/results.json").read_text())["evaluations"]
    own = {"time": "", "seconds": 0.0}  # what no two evaluations have in common
    assert {**evaluations[-1], **own} == {**evaluations[-2], **own} and len(evaluations) == 3


@pytest.mark.slow
def test_killed_and_resumed_and_stopped_it_is_the_same_run(ran: Path, tmp_path: Path) -> None:
    """kill -9 of the second process, then SIGTERM to torchrun: each time the run ends with a
    checkpoint that serves.
    """
    run = tmp_path / "run"
    train = [
        "-m",
        "pyro_vae",
        "train",
        *SMALL,
        "--quiet",
        "--checkpoint-minutes",
        "0",
        "--out",
        "run",
    ]
    with launched(tmp_path, *train) as child:
        until(child, lambda: (steps_saved(run) or [0])[-1] >= 4)
        os.kill(workers(child)[1], signal.SIGKILL)
        assert child.wait(60) != 0
    (line,) = said(tmp_path)
    # torchrun ends the other one too, which may hear that first
    heard = ("error: another process of the 2 has ended (", "stopped by SIGTERM; ")
    assert line.startswith(heard) and "pyro-vae train --resume run" in line
    assert sorted(exit_codes(tmp_path)) in ([-9, 1], [-9, 143])
    reached = steps_saved(run)[-1]
    assert 4 <= reached < 40
    pv.load(run)
    with launched(tmp_path, "-m", "pyro_vae", "train", "--resume", "run", "--quiet") as child:
        until(child, lambda: steps_saved(run)[-1] >= max(reached + 3, 24))
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) != 0
    (line,) = said(tmp_path)
    stopped = f"checkpoint: run/checkpoints/step-{steps_saved(run)[-1]:09d}.pt"
    assert line == f"stopped by SIGTERM; {stopped}; continue with: pyro-vae train --resume run"
    pv.load(run)
    done = rows(run)
    assert len(done) >= 2 and done == rows(ran / "run")[: len(done)]  # bit for bit


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_one_line_in_all(ran: Path, tmp_path: Path) -> None:
    """One that all of them see, and one that only the first does: the folder is locked."""
    assert (
        torchrun(tmp_path, "-m", "pyro_vae", "train", "--likelihood", "Bernuli", "--out", "run")
        == 1
    )
    (line,) = said(tmp_path)
    assert line.startswith("error: unknown likelihood 'Bernuli'; did you mean 'Bernoulli'?")
    assert exit_codes(tmp_path) == [2, 2] and not (tmp_path / "run").exists()
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "config.toml").write_bytes((ran / "run" / "config.toml").read_bytes())
    with hold(tmp_path / "held"):
        assert torchrun(tmp_path, "-m", "pyro_vae", "train", "--resume", "held") == 1
    (line,) = said(tmp_path)
    assert f"is in use by process {os.getpid()}" in line and exit_codes(tmp_path) == [2, 2]


if __name__ == "__main__":
    child(Path(sys.argv[1]))
