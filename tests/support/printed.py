"""What README and docs print: their blocks of commands and of Python, and how a test runs a page.

A page is one session. Its `sh` and `python` blocks run in order, in the root of a copy of the
repository's tracked files; Python names last to the page's end, as in a notebook. What would import
torch first is forked from a process that has (see `tests.support.children`). One marker, which the
reader sees, makes a line short: what follows `# quick:` is added to a command, whose last value of
an option counts, and takes the place of the values of those names in a line of Python.
"""

from __future__ import annotations

import linecache
import os
import re
import runpy
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import torch

from tests.support.children import SERVER, begin

ROOT = Path(__file__).resolve().parents[2]
MARKER = "# quick:"
RUN = ("sh", "python")
NOT_RUN = ("text", "toml", "json", "yaml", "math")
SHIMS = {
    "python": "",
    "pyro-vae": "-m pyro_vae",
    "pytest": "-m pytest",
    "torchrun": "-m torch.distributed.run",
}
"""What `.venv/bin` of a fresh copy holds, each the tests' own interpreter."""
PROGRAMS = (*SHIMS, "pip", ".venv/bin/")
ELSEWHERE = ("pytest", "torch.distributed.run")
"""Modules that are run in an interpreter of their own."""

INSTALL = re.compile(r"^python3\.11 -m venv \.venv && \.venv/bin/pip install -e \S+( && |$)")
"""The words that make an environment: `.ci/run` says the same at each run, with a network, so that
a page begins with the environment of the tests in `.venv`.
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its first line's number, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README and every page of the docs."""
    made = {ROOT / "docs" / name for name in ("_build", "notebooks")}
    docs = (path for path in (ROOT / "docs").rglob("*.md") if made.isdisjoint(path.parents))
    return [ROOT / "README.md", ROOT / "notebooks" / "README.md", *sorted(docs)]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start, fence, language = 0, "", ""
    for number, line in enumerate(lines, 1):
        opened = re.match(r"^\s*(`{3,}|:{3,})(.*)$", line)
        if not fence and opened:
            start, fence, language = number, opened[1], opened[2].strip()
        elif fence and line.strip() == fence:
            yield Block(page, start, language, "\n".join(lines[start : number - 1]))
            fence = ""
    if fence:
        raise ValueError(f"{page}:{start}: a block that is not closed")


def shortened(line: str, language: str) -> str:
    """A line as it is run: what its marker says is in the place of what is printed."""
    printed, marker, quick = line.partition(MARKER)
    if not marker:
        return line
    if language == "sh":
        return f"{printed.rstrip()} {quick.strip()}"
    for name, value in re.findall(r"(\w+)\s*=\s*([^\s,]+)", quick):
        printed, found = re.subn(
            rf"\b{name}(\s*=\s*)[\w.+-]+", lambda m, to=value: f"{m[0].split('=')[0]}={to}", printed
        )
        if found != 1:
            raise ValueError(f"{line.strip()!r}: {name} is not once in the line")
    return printed.rstrip()


def commands(block: Block) -> Iterator[str]:
    """The commands of an `sh` block, shortened, without comments and without the install."""
    for line in block.text.replace("\\\n", " ").split("\n"):
        run = INSTALL.sub("", shortened(line, "sh").partition(" #")[0].strip())
        if run and not run.startswith("#"):
            yield run


def fresh_copy(folder: Path) -> Path:
    """The tracked files, as they are in the working tree, in a new folder; the tests' environment
    is its `.venv`.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in SHIMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


def run_page(
    page: Path, folder: Path, languages: Sequence[str] = RUN
) -> subprocess.CompletedProcess[str]:
    """Run a page's session in a copy of the repository, as one who has activated `.venv`; it ends
    at the first block or command that fails.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    pipe, end = SERVER.Pipe()
    python = SERVER.Process(target=_python, args=(folder, environment, end))
    python.start()
    end.close()
    code = 0
    for block in (each for each in blocks(page) if each.language in languages):
        if block.language == "python":
            lines = [shortened(line, "python") for line in block.text.split("\n")]
            pipe.send((str(block), "\n".join(lines) + "\n"))
            code = 0 if _answers(pipe) else 1
        for command in commands(block) if block.language == "sh" else ():
            code = code or _run(command, folder, environment)
        if code:
            break
    pipe.close()
    python.join(60)
    out, err = ((folder / f".page.{kind}").read_text() for kind in ("out", "err"))
    return subprocess.CompletedProcess(str(page), code, out, err)


def _answers(pipe: Connection) -> bool:
    """Whether the Python of a page has run its block to the end."""
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def _run(command: str, folder: Path, environment: dict[str, str]) -> int:
    """The exit code of a command: one of Python's modules in a process of the server, anything else
    by bash.
    """
    typed, _, target = command.partition(" > ")
    words = shlex.split(typed)
    words[:1] = ["python", *SHIMS.get(Path(words[0]).name, words[0]).split()]
    if words[1] == "-m" and words[2] not in ELSEWHERE and not set(typed) & set("|<>;&$"):
        child = SERVER.Process(target=_module, args=(folder, environment, target, *words[2:]))
        child.start()
        child.join(600)
        return 1 if child.exitcode is None else child.exitcode
    with open(folder / ".page.out", "a") as out, open(folder / ".page.err", "a") as err:
        return subprocess.run(
            ["bash", "-euc", command], cwd=folder, env=environment, stdout=out, stderr=err
        ).returncode


# what runs in a process of the server


def _begin(folder: Path, environment: dict[str, str]) -> None:
    begin(str(folder), ".page")
    torch.set_num_threads(1)  # torch's pool anew, before two threads of it ask at once
    os.environ.clear()
    os.environ.update(environment)
    site.addsitedir(str(folder))  # beside the page, for what it writes itself


def _module(folder: Path, environment: dict[str, str], target: str, name: str, *words: str) -> None:
    _begin(folder, environment)
    if target:
        os.dup2(os.open(target.strip(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _python(folder: Path, environment: dict[str, str], pipe: Connection) -> None:
    _begin(folder, environment)
    sys.modules["__main__"] = names = ModuleType("__main__")
    with suppress(EOFError):
        while True:
            block, text = pipe.recv()
            linecache.cache[block] = (len(text), None, text.splitlines(True), block)
            exec(compile(text, block, "exec"), vars(names))
            sys.stdout.flush()
            pipe.send(None)
