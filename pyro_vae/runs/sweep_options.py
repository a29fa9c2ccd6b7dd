"""The options of `pyro-vae sweep`: those of `train`, each with several values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, Union

from pyro_vae.runs.options import BY_PLACE, OF_THE_CALL, Options, Train
from pyro_vae.training.settings import kinds_of, option

OUT = Path("runs") / "sweep"
"""Where the cells' folders go, unless another folder is named."""


@dataclasses.dataclass(frozen=True)
class SweepBase(Options):
    """Train every cell of a grid as its own run, and rank the cells. Give several values to any
    option of `train`: the cells are all their combinations. A finished cell is not run again.
    """

    command: ClassVar[str] = "sweep"
    examples: ClassVar[tuple[str, ...]] = (
        'pyro-vae sweep --guide MeanField "IAF(depth=2)" --seed 0 1 2 --steps 2000 --dry-run',
        "pyro-vae sweep grid.toml --jobs 4 --out runs/guides",
    )
    grid: Path | None = dataclasses.field(default=None, metadata=BY_PLACE)
    """A TOML file of options. A list gives several values to an option. Each table [[cell]] adds
    cells with its own options.
    """
    jobs: int = option(1, least=1)
    """The number of cells that run at the same time; they share the threads."""
    on: str = "here"
    """here; a Dask scheduler's address (tcp://host:8786); or print, which prints one command per
    cell for any other scheduler.
    """
    out: Path = OUT
    """The folder for the runs of the cells; workers on other machines must share it."""
    dry_run: bool = False
    """Train nothing; show the cells, an estimate of their time, and which cells are refused."""
    format: Literal["text", "markdown", "csv", "html"] = "text"
    """The format of the ranking."""

    @property
    def given(self) -> dict[str, list[Any]]:
        """The options of `train` that have values."""
        return {name: list(values) for name in SWEPT if (values := getattr(self, name))}


def _several(name: str) -> Any:
    """The type of several values of one option of `train`."""
    kinds = tuple(kind for kind in kinds_of(Train, name) if kind is not NoneType)
    one: Any = Union[kinds]  # noqa: UP007  # made at run time
    return tuple[one, ...]


SWEPT = tuple(
    each.name
    for each in dataclasses.fields(Train)
    if each.name not in OF_THE_CALL and each.type != "bool"
)
"""The options of `train` that a sweep takes on its command line."""

GROUPS = {"sweep": "grid jobs on out dry_run format"} | {
    f"{head}, as in train": " ".join(name for name in names.split() if name in SWEPT)
    for head, names in Train.groups.items()
}

Sweep: Any = dataclasses.make_dataclass(
    "Sweep",
    [(name, _several(name), dataclasses.field(default=())) for name in SWEPT],
    bases=(SweepBase,),
    namespace={"groups": GROUPS},
    frozen=True,
)
Sweep.__doc__ = SweepBase.__doc__
