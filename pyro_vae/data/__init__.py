"""Data sets: stored files → images (rows) → batches.

`load` reads a data set; `observe` turns its images into what a model sees, such as binary pixels.
Both are imported at first use, as the names of `pyro_vae` are.
"""

from functools import partial

from pyro_vae.lazy import homes, loaded

__all__ = list(_HOMES := homes(__file__))
__getattr__ = partial(loaded, __name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
