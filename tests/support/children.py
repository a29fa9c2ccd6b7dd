"""Real child processes that run `pyro-vae`: forked from one server that has imported torch, so that
each costs little.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pyro_vae.cli.commands",
        "pyro_vae.guides",
        "pyro_vae.models",
        "sklearn.datasets",
        "torch._dynamo",
    ]
)

SMALL = [
    "--net",
    "MLP(hidden=16)",
    "--latent-dim",
    "2",
    "--num-samples",
    "5",
    "--eval-images",
    "20",
    "--no-pictures",
]
QUICK = [*SMALL, "--compile", "off", "--quiet"]
"""Digits, 11 steps an epoch, a step of about 2 ms."""


class Child:
    """One command in a process of its own. ``setup`` runs there first: it breaks what is to be
    broken.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], setup: Callable[[], None] | None = None
    ) -> None:
        self.folder = folder
        self.process: BaseProcess = SERVER.Process(
            target=_run, args=(str(folder), list(arguments), setup)
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid
        self._name = folder / f".output-{self.pid}"

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, and wait until it is dead."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """The exit code as a shell gives it."""
        self.process.join(120)
        code = self.process.exitcode
        assert code is not None, "the child hangs"
        return code if code >= 0 else 128 - code

    @property
    def error(self) -> str:
        """What it wrote to stderr."""
        return _text(Path(f"{self._name}.err"))

    @property
    def output(self) -> str:
        """What it wrote to stdout."""
        return _text(Path(f"{self._name}.out"))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the child is to do."""
        for _ in range(120_000):
            if condition():
                return
            assert self.process.is_alive(), f"the child ended with {self.wait()}: {self.error}"
            time.sleep(0.001)
        raise AssertionError("the child does not get there")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def done(folder: Path, arguments: Sequence[str], setup: Callable[[], None] | None = None) -> Child:
    """A child that has ended."""
    child = Child(folder, arguments, setup)
    child.wait()
    return child


def one_line(child: Child, *words: str) -> None:
    """What a failure looks like: one line on stderr that has these words, no traceback, nothing on
    stdout.
    """
    error = child.error
    assert error.count("\n") == 1 and error.startswith("error: "), error
    assert "Traceback" not in error and "weights_only" not in error and child.output == ""
    for word in words:
        assert word in error, error


def checkpoints(run: Path) -> list[str]:
    """The names of the checkpoints that are complete, the oldest first."""
    found = (run / "checkpoints").glob("step-*.pt") if (run / "checkpoints").is_dir() else ()
    return [
        path.name
        for path in sorted(found, key=lambda path: path.stem)
        if path.with_name(path.name + ".sha256").is_file()
    ]


# what `setup` may be: functions of a module, as they cross into another process by name


def small_files() -> None:
    """A quota: no file above 12 kB, which a checkpoint is."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


def little_memory() -> None:
    """60 MiB more of addresses than the process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":") for line in lines)
    limit = int(sizes["VmSize"].split()[0]) * 1024 + 60 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def killed_before_its_configuration() -> None:
    """``kill -9`` comes where the configuration gets its name."""
    replace = os.replace

    def last(source: Any, target: Any, **names: Any) -> None:
        if Path(target).name == "config.toml":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **names)

    os.replace = last


def disk_is_full() -> None:
    """No checkpoint can be written: the kernel says so itself, at /dev/full."""
    from pyro_vae import files

    def opened(path: Path, mode: str) -> IO[bytes]:
        return open("/dev/full" if ".pt." in str(path) else path, mode)

    files.open = opened  # type: ignore[attr-defined]


def read_only() -> None:
    """The error of a file system that was mounted read-only."""
    from pyro_vae import files

    def opened(path: Path, mode: str) -> IO[bytes]:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    files.open = opened  # type: ignore[attr-defined]


def fsync_hangs() -> None:
    """From the third step's checkpoint on, a write takes a minute; the file ``run/hangs`` tells
    that it has begun.
    """
    sync, count = os.fsync, [0]

    def hang(descriptor: int) -> None:
        count[0] += len(checkpoints(Path("run"))) == 2
        if count[0] > 4:
            Path("run/hangs").touch()
            time.sleep(60)
        sync(descriptor)

    os.fsync = hang


def terminated_after(steps: int) -> None:
    """SIGTERM comes while this step is being taken."""
    from pyro_vae.training.train_step import TrainStep

    step, count = TrainStep.__call__, [0]

    def counted(self: TrainStep, *batch: Any) -> Any:
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batch)

    TrainStep.__call__ = counted  # type: ignore[method-assign]


def begin(folder: str, name: str) -> None:
    """What a new process has: its folder, threads and locks of its own, and output, which is added
    to the files ``name.out`` and ``name.err``.
    """
    import torch
    from tqdm import tqdm

    os.chdir(folder)
    for number, kind in ((1, "out"), (2, "err")):
        target = os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, number)
        os.close(target)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own would be the server's to clean up after a kill


def _run(folder: str, arguments: list[str], setup: Callable[[], None] | None) -> None:
    from pyro_vae.cli.entry import main

    begin(folder, f".output-{os.getpid()}")
    if setup is not None:
        setup()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
