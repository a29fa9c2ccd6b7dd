"""Random small Pyro pairs, held against stock Pyro and torch: ``python -m tests.differential
SEED``.
"""
