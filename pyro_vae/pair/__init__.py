"""Two Pyro programs understood, run and scored by site."""
