"""The environment that torchrun gives each process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from functools import cache
from typing import Any

FIRST_WORD = timedelta(minutes=5)
"""How long a process waits for the others to come."""

PATIENCE = 20.0
"""Seconds that a process which ends waits for the others: torchrun kills those that are left when
one has failed.
"""


def size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's number; that of the first, which alone writes and prints, is 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, all processes but the first print nothing."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def end(line: str, code: int, *, lost: bool = False) -> int:
    """Print why this process ends, and give its exit code; of several processes, the first one to
    end decides for all.

    It prints its line, and the others print nothing. They wait for each other, as torchrun stops
    the rest when one has failed.
    ``lost``: it ends because another one is gone, which has said why, or never will.
    """
    if size() > 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's: it ends already
    held = store() if size() > 1 else None
    if held is None:
        if rank() == 0 and line:
            print(line, file=sys.stderr)
        return code
    first, agreed = True, code
    with suppress(RuntimeError):  # the store is gone, with the process that kept it
        said = held.compare_set("ended", "", f"{rank()} {code}").decode().split()
        first, agreed = int(said[0]) == rank(), int(said[1])
    if first and line:
        print(line, file=sys.stderr, flush=True)
    _hang_up()
    until = time.monotonic() + (0.0 if lost else PATIENCE)
    with suppress(RuntimeError):
        left = held.add("left", 1)
        while left < size() and time.monotonic() < until:
            time.sleep(0.02)
            left = held.add("left", 0)
    return agreed


def _hang_up() -> None:
    """Close the connections, so that a process that waits for this one in the midst of its work
    notices.
    """
    import torch.distributed as dist

    if (
        dist.is_initialized() and "nccl" not in dist.get_backend_config()
    ):  # NCCL would wait for what is under way
        dist.destroy_process_group()


@cache
def store() -> Any:
    """torchrun's own table of words, which outlives the processes; None where it keeps none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore

    with suppress(RuntimeError):
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return PrefixStore("pyro_vae", TCPStore(*place, is_master=False, timeout=FIRST_WORD))
    return None
