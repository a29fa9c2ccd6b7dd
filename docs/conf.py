"""How the site is built: `python -m sphinx docs docs/_build`. Notebooks are shown as they were
committed, and not executed.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

import pyro_vae

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# pages of the site, which a reader of the repository finds at its root
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks")

project = "pyro_vae"
version = release = pyro_vae.__version__
copyright = "the developers of pyro_vae"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "command_help",
]
exclude_patterns = ["_build", "_ext", "_templates"]
templates_path = ["_templates"]

nb_execution_mode = "off"
myst_enable_extensions = ["deflist", "colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

smartquotes = False  # options and messages are shown as they are typed: --resume, 'z'
napoleon_use_rtype = False
napoleon_use_ivar = True  # a list of attributes, not a paragraph for each
napoleon_custom_sections = [("Reference", "References")]
autosummary_generate = True
autodoc_typehints = "none"  # in the signature's own words: the docstrings give shapes and units
autodoc_member_order = "bysource"
autodoc_default_options = {
    "show-inheritance": True,
    "exclude-members": "figures, columns, hidden",  # how results print themselves
}
default_role = "code"

html_theme = "furo"
html_title = "pyro_vae"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape `(N, *event)` and `p(x | z)`, which are no marks of reStructuredText."""
    parts = re.split(r"(`+[^`]*`+)", "\n".join(lines))
    parts[::2] = [re.sub(r"(?<![*\w])\*(?=\w)|\|", r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def linked(app: Any, document: str, text: list[str]) -> None:
    """Committed results are files, not pages of the site; the notebooks are copied into it."""
    text[0] = re.sub(r"\]\((../benchmarks/results/[^)]*\.md)\)", r"](path:\1)", text[0])
    moved = {"](../notebooks/": "](notebooks/"}
    if document.startswith("notebooks/"):
        moved = {"](../docs/": "](../", "](../benchmarks": "](../../benchmarks"}
    for there, here in moved.items():
        text[0] = text[0].replace(there, here)


def dashed(app: Any, document: nodes.document, name: str) -> None:
    """A dash between a parameter and its description, where Sphinx writes two hyphens."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Any) -> None:
    app.connect("doctree-resolved", dashed)
    app.connect("autodoc-process-docstring", as_written, priority=400)
    app.connect("source-read", linked)
