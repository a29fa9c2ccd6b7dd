"""Standard output and error: a closed, full or non-UTF-8 stream ends no work."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def printable(text: str) -> str:
    """The text with control characters written out (``\\x1b``), which would command a terminal."""
    if text.isprintable():
        return text
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" and c not in "\n\r\t" else c
        for c in text
    )


class _Stream:
    """A stream whose failures are kept for later; a control character never reaches it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """The number of characters, written or not."""
        self._try(lambda: self.stream.write(printable(text)))
        return len(text)

    def flush(self) -> None:
        """What fails is kept."""
        self._try(self.stream.flush)

    def _try(self, work: Callable[[], Any]) -> None:
        if self.error is None:
            try:
                work()
            except (OSError, ValueError) as error:  # ValueError: of a closed file
                self.error = error if isinstance(error, OSError) else OSError(str(error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def prepare() -> None:
    """Open what is closed, on nothing: a file of ours must not become standard error; and let no
    letter end a line of results.
    """
    for number in (0, 1, 2):
        with suppress(OSError):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
            setattr(sys, name, nowhere)
        with suppress(AttributeError, ValueError, OSError):
            getattr(sys, name).reconfigure(errors="replace")


@contextmanager
def careful() -> Iterator[None]:
    """Inside, losing standard error is no matter, and losing standard output is reported at the
    end.

    Raises:
        OSError: what was printed to standard output did not get there.
    """
    before = sys.stdout, sys.stderr
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
        out.flush()
        err.flush()
    finally:
        sys.stdout, sys.stderr = before
    if out.error is not None:
        raise out.error
