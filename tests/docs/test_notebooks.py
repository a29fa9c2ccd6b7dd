"""The notebooks run from top to bottom; the output that is committed is of their source."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.notebooks import KEY, NOTEBOOKS, source_digest


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_output_is_of_the_committed_source(path: Path) -> None:
    """Else: ``python -m tests.support.notebooks``, which executes it."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.get(KEY) == source_digest(notebook)
    assert "site-packages" not in path.read_text(encoding="utf-8")  # a warning from another's disk


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# the kernel's own notices, of its transport and of Jupyter's paths
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
)
def test_the_notebook_executes_and_says_what_its_committed_output_says(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    executed = NotebookClient(nbformat.read(path, as_version=4), timeout=600).execute()
    headline = _headline(committed)
    assert headline, "the committed notebook has no output: execute it before committing"
    assert (
        abs(_headline(executed)[0] - headline[0]) < 0.5
    )  # nats: another machine's rounding, the same training


def _headline(notebook: nbformat.NotebookNode) -> list[float]:
    """The estimates of log p(x) that its cells printed."""
    lines = [
        o.text
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if o.get("name") == "stdout"
    ]
    found = [text.split("log p(x) ≥ ")[1].split()[0] for text in lines if "log p(x) ≥ " in text]
    return [float(figure.replace("−", "-")) for figure in found]
