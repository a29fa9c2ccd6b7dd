"""Start-up: `pyro-vae --help`, and the import of everything that `pyro_vae` trains and evaluates
with over that of Pyro.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.harness import Options, chosen, interleave, ratios, report, run_cli, write

BASE = "import pyro.infer"
PROGRAMS = {
    BASE: "import pyro.infer",
    "import pyro_vae, all that is public": (
        "import pyro_vae; from pyro_vae import models, guides; [getattr(pyro_vae, name) for name "
        "in pyro_vae.__all__]"
    ),
    "import pyro_vae; fit, log_marginal": "from pyro_vae import models, guides, fit, log_marginal",
    "import pyro_vae": "import pyro_vae",
    "pyro-vae --help": "import sys; from pyro_vae.cli.entry import main; sys.exit(main(['--help']))",
}
ROUNDS = 5


def process(program: str) -> Callable[[], None]:
    """A fresh interpreter, from its start to its end."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    return lambda: subprocess.run(command, check=True, capture_output=True) and None


def main(asked: Options) -> None:
    """Time them in turn."""
    chosen(asked.only, ())
    rounds = asked.rounds or (2 if asked.quick else ROUNDS)
    table = ratios(
        interleave({name: process(program) for name, program in PROGRAMS.items()}, rounds), BASE
    )
    report("start-up", table, BASE)
    write("startup", {"startup": table}, asked.folder)


if __name__ == "__main__":
    run_cli(main, Options, __doc__)
