"""The notebooks are committed with their output, and say of which source it is.

``python -m tests.support.notebooks`` executes those whose source has changed since, in place;
``python -m tests.support.notebooks notebooks/NAME.ipynb`` executes the named ones.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for part in ("docs", "notebooks") for path in (ROOT / part).glob("*.ipynb"))
KEY = "executed_source_sha256"


def source_digest(notebook: nbformat.NotebookNode) -> str:
    """Hexadecimal SHA-256 of the code cells' source."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(cells).encode()).hexdigest()


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom, in its folder, as Jupyter does."""
    place = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=1800, resources=place).execute()


def execute(path: Path) -> None:
    """Run a notebook and write it with its output and its source's digest."""
    # tqdm's, and the only warning: it names a path of this machine
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    notebook = run(nbformat.read(path, as_version=4), path.parent)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ at each run
    notebook.metadata[KEY] = source_digest(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for each in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        committed = nbformat.read(each, as_version=4)
        if sys.argv[1:] or committed.metadata.get(KEY) != source_digest(committed):
            execute(each)
            print(f"{each.name}: executed")
