"""What README and docs print: their blocks of commands and of Python, and how a test runs a page.

A page is one session. Its `sh` and `python` blocks run in order, in the root of a copy of the
repository's tracked files, by one subprocess; Python names last to the page's end, as in a
notebook. One marker, which the reader sees, makes a line short: what follows `# quick:` is added
to a command, whose last value of an option counts, and takes the place of the values of those
names in a line of Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def session(page: Path, languages: Sequence[str] = RUN) -> str:
    """The program that runs a page's blocks one after the other."""
    parts = ["import linecache, subprocess"]
    for block in blocks(page):
        if block.language not in languages:
            continue
        if block.language == "sh":
            for run in commands(block):
                parts.append(f"print({'$ ' + run!r}, flush=True)")
                parts.append(f"subprocess.run(['bash', '-euc', {run!r}], check=True)")
            continue
        text = "\n".join(shortened(line, "python") for line in block.text.split("\n")) + "\n"
        lines = text.splitlines(True)
        parts.append(f"linecache.cache['{block}'] = (1, None, {lines!r}, '')")
        parts.append(f"exec(compile({text!r}, '{block}', 'exec'), globals())")
    return "\n".join(parts)


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
    """Run a page's session in a copy of the repository, as one who has activated `.venv`."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    return subprocess.run(
        ["python", "-c", session(page, languages)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
