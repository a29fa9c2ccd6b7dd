"""The command line. Only ``python -m pyro_vae`` and the console script import it."""
