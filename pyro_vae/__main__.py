"""``python -m pyro_vae``: the command line ``pyro-vae``."""

import sys

from pyro_vae.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
