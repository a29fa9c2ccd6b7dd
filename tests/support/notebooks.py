"""The notebooks of the site are committed with their output, and say of which source it is.

``python -m tests.support.notebooks`` executes those whose source has changed since, in place.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
KEY = "executed_source_sha256"


def source_digest(notebook: nbformat.NotebookNode) -> str:
    """Hexadecimal SHA-256 of the code cells' source."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(cells).encode()).hexdigest()


def execute(path: Path) -> None:
    """Run a notebook from top to bottom and write it with its output and its source's digest."""
    # tqdm's, and the only warning: it names a path of this machine
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    notebook = NotebookClient(nbformat.read(path, as_version=4), timeout=1800).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ at each run
    notebook.metadata[KEY] = source_digest(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for each in NOTEBOOKS:
        held = nbformat.read(each, as_version=4)
        if held.metadata.get(KEY) != source_digest(held):
            execute(each)
            print(f"{each.name}: executed")
