"""The papers' experiments, each cell a configuration of `pyro-vae train`: trained, scored and held
to the published number.
"""
