"""Signals and failures: how a command ends, and its exit code."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

DONE, FAILED, MISTAKEN = 0, 1, 2


class Failure(RuntimeError):
    """A failure that is not the user's mistake: one line, no traceback, exit code 1."""

    of_another = False  # whether it is another process that failed


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. ``kept`` says what there is of the work."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.kept = ""

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, as a shell counts."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}" + (
            f"; {self.kept}" if self.kept else ""
        )


class Waiting:
    """A signal that waits for a safe moment: ``signal`` is the `Stopped` to raise, or None."""

    def __init__(self) -> None:
        self.signal: Stopped | None = None


_waiting: Waiting | None = None


@contextmanager
def stopping() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a `Stopped`, at once or where `postponed` says;
    a second one ends the process.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # the terminal is gone
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # as under nohup
        numbers.append(hangup)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        if _waiting is None:
            raise Stopped(number)
        _waiting.signal = Stopped(number)
        with suppress(OSError):  # not by print, which the signal may have interrupted
            os.write(2, b"stopping after this step; a second signal ends at once\n")

    try:
        for number in numbers:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise ``TimeoutError`` inside, in the main thread, once so many seconds have gone by.

    Again each second from then on, should someone swallow it.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def postponed() -> Iterator[Waiting]:
    """Inside, the first signal waits to be raised by who runs there; one that nobody raised is
    raised at the end.
    """
    global _waiting
    outer, _waiting = _waiting, Waiting()
    mine = _waiting
    try:
        yield mine
    finally:
        _waiting = outer
    if mine.signal is not None:
        raise mine.signal
