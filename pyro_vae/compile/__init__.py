"""Compilation of functions of tensors to graphs: trace, passes, partition. It knows no pair,
optimiser or data.
"""
