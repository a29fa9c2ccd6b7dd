"""`{command-help} train`: the text of `pyro-vae train --help`."""

import contextlib
import io
import os
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from pyro_vae.cli.entry import main


class CommandHelp(Directive):
    """A literal block; without an argument the help of `pyro-vae` itself."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        printed = io.StringIO()
        os.environ["COLUMNS"] = "92"
        with contextlib.redirect_stdout(printed):
            main([*self.arguments, "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
