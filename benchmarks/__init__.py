"""What is measured of the package: the suites of `pyro-vae bench`, and programs of their own."""
