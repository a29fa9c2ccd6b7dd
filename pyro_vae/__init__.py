"""Variational auto-encoders as plain Pyro programs, and their log p(x) with error bars.

The public names are those of `__init__.pyi`. Each is loaded when it is first used, so that the
command line starts without torch.
"""

from __future__ import annotations

from typing import Any

from pyro_vae.lazy import homes, loaded

_HOMES = homes(__file__)
# no module has the name of a public function: once imported, it would replace the function
__all__ = [name for name, home in _HOMES.items() if home != __name__]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # of what is installed: pyproject.toml alone writes it
        from importlib.metadata import version

        return version("pyro-vae")
    return loaded(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
