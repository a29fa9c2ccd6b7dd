"""What of pyro_vae has to be shown on a GPU: one line a check, with its verdict, seconds and
figures; the cheapest and most telling first.

python -m benchmarks.gpu_checks [CHECK …] [--device cpu] [--quick]

Each check has a process of its own, as a capture that failed may spoil the one that it is in, and
a limit of its own. The results file is written after each check, so that a window that closes early
keeps what was shown. `benchmarks/gpu_pack.sh` says how to carry all this to such a machine.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import torch
import tyro
from pyro import distributions as dist
from torch import Tensor, nn

import pyro_vae as pv
from benchmarks.harness import chosen, machine, run_cli, synchronize
from pyro_vae import guides, models

SHAPE, SMALL = (1, 28, 28), (1, 8, 8)
Outcome = tuple[bool, dict[str, Any]]
"""(whether it is as expected, the figures)"""


@dataclass(frozen=True)
class Setting:
    """Where the checks run, and how much of them."""

    device: str = "cuda"
    quick: bool = False

    @property
    def on_cuda(self) -> bool:
        """Whether CUDA's own demands hold."""
        return self.device != "cpu"

    def fit(self, model: Any, guide: Any, x: Tensor, **options: Any) -> pv.History:
        """A short replayed training."""
        given = {"compile": "graph", "num_steps": 60, "batch_size": 40, "progress": False}
        return pv.fit(model, guide, x, device=self.device, **{**given, **options})

    def log_px(self, model: Any, guide: Any, x: Tensor, **options: Any) -> pv.LogMarginal:
        """log p(x) of each image."""
        return pv.log_marginal(model, guide, x, device=self.device, progress=False, **options)

    def generator_lives(self) -> bool:
        """Whether the device's generator draws, and moves on."""
        return not torch.equal(
            torch.randn(8, device=self.device), torch.randn(8, device=self.device)
        )


def bits(number: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Images of 0 and 1, a fifth of them 1."""
    return (torch.rand(number, *shape, generator=torch.Generator().manual_seed(1)) < 0.2).float()


def pair(
    guide: str = "MeanField",
    latent_dim: int = 20,
    shape: tuple[int, ...] = SHAPE,
    hidden: tuple[int, ...] = (400,),
) -> tuple[nn.Module, nn.Module]:
    """A Bernoulli VAE, the same at each call."""
    torch.manual_seed(0)
    likelihood = models.Bernoulli(latent_dim, shape, hidden=hidden)
    model = models.GenerativeModel(models.StandardNormal(latent_dim), likelihood)
    return model, getattr(guides, guide)(shape, latent_dim, hidden=hidden)


def flat(*modules: nn.Module) -> Tensor:
    """All parameters, as one vector on the CPU."""
    return torch.cat([p.detach().cpu().double().flatten() for m in modules for p in m.parameters()])


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A name of a module set to another value inside."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# ---- the checks, in order


def captured(on: Setting) -> Outcome:
    """A training is replayed CUDA graphs of several steps, with fresh noise at each replay, and its
    parameters are those of the step that is not captured.
    """
    from pyro_vae.compile.trace import NotStageable
    from pyro_vae.training import select_step

    def refuse(*given: Any) -> Any:
        raise NotStageable("no CUDA graph, as asked for")

    one = pair()
    history = on.fit(*one, bits(200))
    with replaced(select_step, "CapturedStep", refuse):
        other = pair()
        on.fit(*other, bits(200))
    apart = float((flat(*one) - flat(*other)).abs().max())
    said = "captured as a CUDA graph, 5 steps a launch" in history.note
    return said and apart < 1e-4 and on.generator_lives(), {"note": history.note, "apart": apart}


def each_guide(on: Setting) -> Outcome:
    """Every family of guides is captured, or says why not, and the generator lives after it."""
    families = ("MeanField", "FullRank", "LowRank", "MixtureOfGaussians", "IAF", "NSF", "Planar")
    figures, fine = {}, True
    for name in families:
        model, guide = pair(name, 4, SMALL, (16,))
        history = on.fit(model, guide, bits(200, SMALL), num_steps=20, objective="Trace_ELBO")
        figures[name] = history.note.partition("; checked")[0]
        fine = fine and on.generator_lives()
    return fine and "captured" in figures["MeanField"], figures


def annealed(on: Setting) -> Outcome:
    """AIS whose target is replayed gives the numbers of the programs themselves: in float64, as a
    chain that is accepted or not by rounding is another.
    """
    model, guide = (program.double() for program in pair("MeanField", 4, SMALL, (16,)))
    x = bits(20, SMALL).double()
    found = []
    for tier in ("off", "graph"):
        synchronize()
        begun = time.perf_counter()
        how = {"num_steps": 20 if on.quick else 200, "compile": tier, "device": on.device}
        log_px = pv.ais(model, guide, x, **how).log_px.cpu()
        found.append((log_px, time.perf_counter() - begun))
    apart = float((found[0][0] - found[1][0]).abs().max())
    seconds = [round(took, 2) for _, took in found]
    return apart < 1e-6, {"apart": apart, "seconds": seconds}


def rounded_training(on: Setting) -> Outcome:
    """`fit` in bfloat16: the error that it tells is small, and so is that of its ELBO."""
    elbos, notes = [], []
    for precision in ("float32", "bfloat16"):
        history = on.fit(*pair(), bits(200), precision=precision)
        elbos.append(history.train[-1].elbo)
        notes.append(history.note)
    said = notes[1].partition("bfloat16 products: ")[2]
    apart = elbos[1] - elbos[0]
    return bool(said) and abs(apart) < 0.5, {"said": said, "apart": apart, "note": notes[1]}


def second_device(on: Setting) -> Outcome:
    """A device that is not the current one is trained (where there are two)."""
    if not on.on_cuda or torch.cuda.device_count() < 2:
        return True, {"devices": torch.cuda.device_count()}
    model, guide = pair()
    before = flat(model, guide)
    Setting("cuda:1").fit(model, guide, bits(200))
    return not torch.equal(before, flat(model, guide)), {"devices": torch.cuda.device_count()}


class Einsum(pyro.nn.PyroModule):
    """A decoder whose gradient comes back in another memory layout than its weight's."""

    pure = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(6, 2))

    def forward(self, x: Tensor) -> None:
        """p(z) p(x | z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = torch.einsum("bi,di->bd", z, self.weight)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def layouts(on: Setting) -> Outcome:
    """The same ELBO by the fused optimiser as by one that is not."""
    drawn = torch.Generator().manual_seed(3)
    x = torch.randn(256, 6, generator=drawn) @ torch.randn(6, 6, generator=drawn) * 0.5
    found = {}
    for name, optimizer in (
        ("fused", "Adam"),
        ("plain", lambda p: torch.optim.Adam(p, lr=1e-2, fused=False, foreach=False)),
    ):
        model, guide = Einsum(), guides.MeanField((6,), 2, hidden=(8,))
        given = {"batch_size": 64, "learning_rate": 1e-2, "schedule": "constant"}
        history = on.fit(model, guide, x, num_steps=300, optimizer=optimizer, **given)
        found[name] = history.train[-1].elbo
    return abs(found["fused"] - found["plain"]) < 0.05, found


def precisions(on: Setting) -> Outcome:
    """The user's TF32 settings, old and new, and autocast: no crash, and the numbers of float32."""
    model, guide = pair(hidden=(64,))
    x = bits(20)
    base = on.log_px(model, guide, x, num_samples=100).log_px
    figures, fine = {}, True
    kind = on.device.partition(":")[0]
    settings = {
        "new API": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "new API, conv": "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
        "old API": "torch.backends.cuda.matmul.allow_tf32 = True",
        "autocast": f"torch.autocast('{kind}', dtype=torch.bfloat16).__enter__()",
    }
    for name, line in settings.items():
        code = (
            f"import torch; {line}; from benchmarks.gpu_checks import *; "
            f"m, g = pair(hidden=(64,)); r = Setting({on.device!r}).log_px(m, g, bits(20), "
            "num_samples=100); print(json.dumps(r.log_px.tolist()))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if run.returncode:
            figures[name], fine = run.stderr.strip().splitlines()[-1][:160], False
            continue
        there = torch.tensor(json.loads(run.stdout.strip().splitlines()[-1]))
        figures[name] = float((there - base.cpu()).abs().max())
        fine = fine and figures[name] < 1e-3
    return fine, figures


def cpu_and_gpu(on: Setting) -> Outcome:
    """One pair on both devices: within 6 standard errors; exact where the posterior is known."""
    model, guide = pair()
    here, there = (
        where.log_px(model, guide, bits(64), num_samples=1000) for where in (Setting("cpu"), on)
    )
    errors = (here.se.cpu() ** 2 + there.se.cpu() ** 2).sqrt()
    worst = float(((here.log_px.cpu() - there.log_px.cpu()) / errors).abs().max())
    ppca = models.LinearGaussian(SHAPE, 5)
    posterior = guides.ExactPosterior(ppca)
    x = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(2))
    exact = [
        where.log_px(ppca, posterior, x, num_samples=20).log_px.cpu()
        for where in (Setting("cpu"), on)
    ]
    gap = float((exact[0] - exact[1]).abs().max() / exact[0].abs().max())
    return worst < 6 and gap < 1e-5, {"worst, in SE": worst, "pPCA, relative": gap}


def resumed(on: Setting) -> Outcome:
    """A training that was stopped and goes on ends where the one that was not stopped does."""
    x, whole, parts = bits(400), pair(), pair()
    on.fit(*whole, x, num_steps=40)

    def stop(end: Any) -> None:
        if end.train.epoch == 3:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        keep = {"num_steps": 40, "callbacks": [pv.Checkpoints(folder, minutes=0), stop]}
        try:
            on.fit(*parts, x, **keep)
        except KeyboardInterrupt:
            parts = pair()
            keep["callbacks"] = keep["callbacks"][:1]
            on.fit(*parts, x, resume=folder, **keep)
    apart = float((flat(*whole) - flat(*parts)).abs().max())
    return apart < 1e-4, {"apart": apart}


def memory(on: Setting) -> Outcome:
    """Twenty trainings in one process: what is reserved does not grow."""
    seen = []
    for _ in range(6 if on.quick else 20):
        model, guide = pair()
        on.fit(model, guide, bits(400), num_steps=20)
        del model, guide
        gc.collect()
        seen.append(torch.cuda.memory_reserved() / 2**20 if on.on_cuda else 0.0)
    return seen[-1] <= seen[2] * 1.1 + 1, {"MiB": [round(each) for each in seen]}


def out_of_memory(on: Setting) -> Outcome:
    """Far too many rows at once: halved, said, and a finite number."""
    from pyro_vae.evaluation import tiling

    rows, number, k = (40_000_000, 2000, 20_000) if on.on_cuda else (2000, 20, 200)
    with replaced(tiling, "ROWS", {**tiling.ROWS, on.device.partition(":")[0]: rows}):
        found = on.log_px(*pair(), bits(number), num_samples=k, compile="graph")
    said = not on.on_cuda or any("memory" in note for note in found.notes)
    return said and bool(found.log_px.isfinite().all()), {"notes": list(found.notes)[:2]}


def larger_than_the_device(on: Setting) -> Outcome:
    """Images that stay on the host train to the parameters of images on the device."""
    from pyro_vae.data import loaders

    x, one, other = bits(400), pair(), pair()
    on.fit(*one, x)
    with replaced(loaders, "has_room", lambda x, device: False):
        history = on.fit(*other, x)
    apart = float((flat(*one) - flat(*other)).abs().max())
    return apart < 1e-4 and "host's memory" in history.note, {"apart": apart}


def evaluation(on: Setting) -> Outcome:
    """10 000 images by K = 5000, in each precision, beside this card's products alone."""
    number, k = (20, 100) if on.quick else (10_000, 5000)
    model, guide = pair(hidden=(500, 500))
    figures: dict[str, Any] = {}
    flops = 2.0 * number * k * (20 * 500 + 500 * 500 + 500 * 784)
    for precision in ("float32", "tf32", "bfloat16") if on.on_cuda else ("float32",):
        synchronize()
        begun = time.perf_counter()
        found = on.log_px(
            model, guide, bits(number), num_samples=k, precision=precision, compile="graph"
        )
        synchronize()
        took = time.perf_counter() - begun
        figures[precision] = f"{took:.2f} s, {flops / took / 1e12:.1f} TFLOP/s, {found.mean:.3f}"
    return True, figures


def speed(on: Setting) -> Outcome:
    """Microseconds a step of `fit` in its tiers, and of the step written by hand."""
    from benchmarks.architectures import ARCHITECTURES
    from benchmarks.contestants import hand_written, ours

    figures: dict[str, Any] = {}
    for name in ("iwae b20", "mlp400 b128"):
        at = ARCHITECTURES[name]
        images = at.images(at.batch_size * (10 if on.quick else 400)).to(on.device)
        makers: dict[str, Callable[[], Any]] = {
            "hand-written, eager": lambda at=at, images=images: hand_written.epochs(at, images)
        }
        for tier in ("graph", "inductor"):
            makers[f"fit, {tier}"] = lambda at=at, images=images, tier=tier: ours.epochs(
                at, images, tier
            )
        for contestant, make in makers.items():
            seconds = min(make()(3).seconds) / (len(images) / at.batch_size)
            rate = at.batch_size / seconds / 1e6
            figures[f"{name}, {contestant}"] = f"{seconds * 1e6:.0f} us, {rate:.2f} M images/s"
        if on.on_cuda:
            replay = hand_written.captured_step(at, images[: at.batch_size])
            synchronize()
            begun = time.perf_counter()
            for _ in range(2000):
                replay()
            synchronize()
            took = (time.perf_counter() - begun) / 2000
            figures[f"{name}, hand-written, CUDA graph, no gather"] = f"{took * 1e6:.0f} us"
    return True, figures


CHECKS: dict[str, tuple[Callable[[Setting], Outcome], int]] = {
    "captured": (captured, 60),
    "each_guide": (each_guide, 120),
    "annealed": (annealed, 60),
    "rounded_training": (rounded_training, 40),
    "second_device": (second_device, 30),
    "layouts": (layouts, 40),
    "precisions": (precisions, 120),
    "cpu_and_gpu": (cpu_and_gpu, 60),
    "resumed": (resumed, 60),
    "memory": (memory, 60),
    "out_of_memory": (out_of_memory, 90),
    "larger_than_the_device": (larger_than_the_device, 60),
    "evaluation": (evaluation, 120),
    "speed": (speed, 180),
}
"""By name: the check, and its limit in seconds."""


@dataclass(frozen=True)
class Options:
    """Which checks run, and where."""

    only: tyro.conf.Positional[tuple[str, ...]] = ()
    """Checks; by default all, in their order."""
    device: str = "cuda"
    """cuda or cuda:N; cpu runs the same lines, and shows nothing of a GPU."""
    quick: bool = False
    """Small sizes: whether everything runs."""
    seconds: float = 300.0
    """When no further check is begun."""
    out: Path = Path("runs/bench/gpu_checks.json")
    """Where the results go."""
    here: bool = False
    """One check in this process, its result printed as JSON."""


def main(asked: Options) -> None:
    """Run the checks, each in a process of its own."""
    names, on = chosen(asked.only, CHECKS), Setting(asked.device, asked.quick)
    if asked.here:
        print("RESULT " + json.dumps(one(CHECKS[names[0]][0], on)), flush=True)
        return
    begun, rows = time.time(), []
    about = {"machine": machine(), "torch": torch.__version__, "device": asked.device}
    print(about, flush=True)
    for name in names:
        left = asked.seconds - (time.time() - begun)
        if left < 10:
            rows.append({"check": name, "verdict": "not run", "figures": {"seconds left": left}})
        else:
            rows.append(in_a_process(name, asked, min(left, CHECKS[name][1])))
        row = rows[-1]
        print(f"{row['verdict']:8s}{name:24s}{row['figures']}", flush=True)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps({**about, "checks": rows}, indent=1))
    if any(row["verdict"] == "FAILED" for row in rows):
        sys.exit(1)


def in_a_process(name: str, asked: Options, limit: float) -> dict[str, Any]:
    """A check's row."""
    command = [sys.executable, "-m", "benchmarks.gpu_checks", name, "--here", "--device"]
    command += [asked.device, *(["--quick"] if asked.quick else [])]
    begun = time.time()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"check": name, "verdict": "FAILED", "figures": {"longer than": limit}}
    found = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    fine, figures = (
        json.loads(found[-1][7:]) if found else (False, {"died": run.stderr.strip()[-600:]})
    )
    seconds = round(time.time() - begun, 1)
    verdict = "ok" if fine else "FAILED"
    return {"check": name, "verdict": verdict, "seconds": seconds, "figures": figures}


def one(check: Callable[[Setting], Outcome], on: Setting) -> Outcome:
    """What a check says; an error is a check that failed."""
    from pyro_vae.training.select_step import CAPTURES

    # on the CPU the same lines run, the step itself being its replay
    replays = {} if on.on_cuda else {"cpu": lambda step, device: step}
    try:
        with patch.dict(CAPTURES, replays):
            fine, figures = check(on)
        return bool(fine), figures
    except Exception as error:
        at = traceback.format_exc().strip().splitlines()
        return False, {"error": f"{type(error).__name__}: {str(error)[:300]}", "at": at[-3].strip()}


if __name__ == "__main__":
    run_cli(main, Options, __doc__)
