"""The notebooks run from top to bottom; the output that is committed is of their source."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.support.notebooks import KEY, NOTEBOOKS, ROOT, run, source_digest
from tests.support.printed import shortened


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_output_is_of_the_committed_source(path: Path) -> None:
    """Else: ``python -m tests.support.notebooks``, which executes it."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.get(KEY) == source_digest(notebook)
    assert "site-packages" not in path.read_text(encoding="utf-8")  # a warning from another's disk


def test_every_exhibit_of_the_table_ends_with_a_number_and_a_picture() -> None:
    """The rows of notebooks/README.md are the exhibits that the notebooks print, in order."""
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \|.*\((\d\d_\w+\.ipynb)\)", text, re.MULTILINE)
    shown = []
    for path in (path for path in NOTEBOOKS if path.parent.name == "notebooks"):
        number, printed, pictures = "", "", 0
        cells = nbformat.read(path, as_version=4).cells
        for cell in [*cells, nbformat.v4.new_markdown_cell("## Exhibit")]:
            if cell.cell_type == "markdown" and (
                found := re.search("## Exhibit ?(.*)", cell.source)
            ):
                if number:
                    assert re.search(rf"^exhibit {number}: .*\d", printed, re.MULTILINE), path.name
                    assert pictures, f"{path.name}, exhibit {number}"
                    shown.append((number, path.name))
                number, printed, pictures = found[1].split(".")[0], "", 0
            for output in cell.get("outputs", []):
                printed += output.get("text", "")
                pictures += "image/png" in output.get("data", {})
    assert listed == shown


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# the kernel's own notices, of its transport and of Jupyter's paths
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
)
def test_the_notebook_executes_and_says_what_its_committed_output_says(path: Path) -> None:
    """What follows `# quick:` makes a line short, as in the pages (`tests/support/printed.py`).
    A notebook without that mark prints the committed numbers again.
    """
    committed, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = "\n".join(shortened(line, "python") for line in cell.source.split("\n"))
    as_committed = source_digest(notebook) == source_digest(committed)
    executed = run(notebook, path.parent)
    assert _outputs(committed), "the committed notebook has no output: execute it before committing"
    if as_committed:  # nats: another machine's rounding, the same training
        assert _headlines(executed) == pytest.approx(_headlines(committed), abs=0.5)


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _headlines(notebook: nbformat.NotebookNode) -> list[float]:
    """The estimates of log p(x) that its cells printed."""
    printed = "".join(o.text for o in _outputs(notebook) if o.get("name") == "stdout")
    found = [text.split()[0] for text in printed.split("log p(x) ≥ ")[1:]]
    return [float(figure.replace("−", "-")) for figure in found]
