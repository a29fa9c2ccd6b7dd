"""Functions of tensors as graphs: trace, passes, partition; nothing here knows a pair, an optimiser
or data.
"""
