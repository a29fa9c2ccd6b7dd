"""What README and docs print runs as it is printed (see `tests/support/printed.py`)."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from pyro_vae.cli.command_table import COMMANDS
from pyro_vae.cli.entry import parse
from tests.support.printed import (
    INSTALL,
    MARKER,
    NOT_RUN,
    PROGRAMS,
    ROOT,
    RUN,
    blocks,
    commands,
    fresh_copy,
    pages,
    run_page,
    shortened,
)

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
RUNNING = [
    name for name, page in PAGES.items() if any(block.language in RUN for block in blocks(page))
]
_INDENTED = [f"    {program} " for program in PROGRAMS]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNING)
def test_a_page_runs_as_printed(name: str, tmp_path: Path) -> None:
    done = run_page(PAGES[name], fresh_copy(tmp_path))
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_python_of_readme_runs_as_pasted(tmp_path: Path) -> None:
    """The cheap part of the test above, without the commands."""
    done = run_page(PAGES["README.md"], fresh_copy(tmp_path), ["python"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "log p(x) ≥ −" in done.stdout


@pytest.mark.parametrize("name", PAGES)
def test_no_command_is_printed_that_is_not_run(name: str) -> None:
    """Each block says its language; only `sh` and `python` hold what a reader would type."""
    for block in blocks(PAGES[name]):
        language = block.language
        assert language in RUN + NOT_RUN or language.startswith("{"), f"{block}: {language!r}"
        if language not in RUN:
            typed = [line for line in block.text.splitlines() if line.startswith(PROGRAMS)]
            assert not typed, f"{block}: {typed}"
    text = PAGES[name].read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if line.startswith(tuple(_INDENTED))]
    for block in blocks(PAGES[name]):
        language = block.language
        if language == "python":
            ast.parse(block.text)
        for line in block.text.splitlines():
            shortened(line, language)
            assert MARKER in line or "# quick" not in line, f"{block}: {line}"


@pytest.mark.parametrize("name", PAGES)
def test_printed_commands_are_understood(name: str) -> None:
    """Options and values exist, in blocks and within sentences; capitals stand for a reader's own
    words.
    """
    page = PAGES[name]
    within = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    typed = [run for block in blocks(page) if block.language == "sh" for run in commands(block)]
    typed += [re.split(r"…|\[", each)[0] for each in re.findall(r"`(pyro-vae [^`]+)`", within)]
    for line in typed:
        words = shlex.split(line.partition(" > ")[0])
        if words[0].endswith("pyro-vae") and "--help" not in words:
            if any(word.startswith("-") for word in words) and "--resume" not in words:
                parse(words[1:])
            else:
                assert words[1] in COMMANDS, line


def test_the_environment_is_made_by_the_words_that_ci_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python3.11 -m venv" in script and "pip install --quiet -e '.[test]'" in script
    readme = [line for block in blocks(PAGES["README.md"]) for line in block.text.splitlines()]
    assert sum(INSTALL.match(line) is not None for line in readme) == 2


def test_every_public_name_has_its_page() -> None:
    """The API's page lists the names by hand, in an order for readers."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        namespace = import_module(section.split()[0])
        listed = re.findall(r"^   (\w+)$", section, flags=re.MULTILINE)
        assert sorted(listed) == sorted(namespace.__all__), section.split()[0]


def test_every_command_has_its_help_on_the_page() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^```\{command-help\} (\w+)$", text, flags=re.MULTILINE)) == set(
        COMMANDS
    )


def test_readme_is_short_and_begins_with_a_result() -> None:
    lines = PAGES["README.md"].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert any("log p(x) ≥" in line for line in lines[:25])
