"""Commands; nothing imports it but ``python -m pyro_vae`` and the console script."""
