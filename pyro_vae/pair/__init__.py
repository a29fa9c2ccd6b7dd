"""Pairs: two Pyro programs, analysed, run and scored by site."""
