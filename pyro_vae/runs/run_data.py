"""The data of a run, found again and recognised by their SHA-256."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae.choices import lookup
from pyro_vae.data import datasets
from pyro_vae.data.image_data import ImageData, Likeness
from pyro_vae.errors import UserError
from pyro_vae.runs.command_options import Scored
from pyro_vae.runs.experiment import Experiment, load_data, prepare, scored
from pyro_vae.runs.options import Train
from pyro_vae.runs.run import Run

OBSERVED_LEVELS = ("dynamic", "static", "threshold")
"""Binarizations under which a checkpoint's ``levels`` are not the stored ones."""


def trained(
    run: Run, options: Scored, tell: Callable[[str], None], new: bool = False
) -> tuple[Experiment, int]:
    """A run's experiment with the trained model and guide in it, and the steps that they were
    trained for.

    Args:
        options: where its data are now, and whether the code of its parts is trusted.
        new: take all of ``options.data``, another set than its own, as the test set.
    """
    own, place = run.options(), (options.data, options.data_root)
    with run.code(options.trust):
        model, guide, held = run.load_pair(tell=tell)
        steps = int(held.metadata.get("step", 0))
        if new:
            return scored(own, whole(own, held.metadata, *place), model, guide), steps
        return prepare(own, of_run(run, own, held.metadata, *place), (model, guide)), steps


def resumed(run: Run, options: Train, known: Mapping[str, Any]) -> Experiment:
    """The experiment of a training that goes on, its data being where ``options`` say now.

    Args:
        known: the metadata of the checkpoint that it goes on from; nothing where there is none.

    Raises:
        UserError: they are not the run's.
    """
    configured = run.options()
    data = options.data if options.data != configured.data else None
    if data is not None and not known:
        raise UserError(
            f"--data {data}: {run} has no checkpoint yet, so it can't be checked that these are "
            "its data: leave --data out, or train a new run"
        )
    root = options.data_root if options.data_root != configured.data_root else None
    found = of_run(run, configured, known, data, root)
    return prepare(replace(options, data=configured.data, data_root=configured.data_root), found)


def of_run(
    run: Run, options: Train, known: Mapping[str, Any], data: str | None, data_root: Path | None
) -> ImageData:
    """The very data that the run was trained on: at ``data``, else where they were, seen from here,
    from ``data_root`` and from the run's folder.

    Args:
        known: the metadata of its checkpoint.

    Raises:
        UserError: there are none, or others.
    """
    expected = known.get("data_sha256")
    other: str | None = None
    for place, root in _places(run, options, data, data_root):
        found = load_data(options, place, root)
        shape = known.get("event_shape", list(found.event_shape))
        if found.sha256 == (expected or found.sha256) and list(found.event_shape) == shape:
            return found
        other = other or place
    if other is None:
        raise UserError(
            f"{options.data}: no such file or folder here or next to {run}: give the path of "
            "the data with --data"
        )
    raise UserError(
        f"{other}: not the data that {run} was trained on (their SHA-256 differs): give the "
        "path of those data with --data. To score a new test set: `pyro-vae evaluate RUN "
        "--data NEW --split all`"
    )


def whole(
    options: Train, known: Mapping[str, Any], data: str | None, data_root: Path | None
) -> ImageData:
    """All of another set, as a test set on the run's own scale: its levels and its classes."""
    # an older version noted the levels that are observed alone
    observed = 256 if options.binarize in OBSERVED_LEVELS else known.get("levels")
    levels = known.get("data_levels", observed)
    like = Likeness(levels, tuple(known.get("classes") or ()) or None)
    found = load_data(options, data, data_root, like)
    shape = list(found.event_shape)
    if shape != known["event_shape"]:
        raise UserError(
            f"{data}: {found.one}s of shape {tuple(shape)}, but the run was trained on "
            f"{tuple(known['event_shape'])}"
        )
    return found


def _places(
    run: Run, options: Train, data: str | None, data_root: Path | None
) -> Iterator[tuple[str, Path | None]]:
    """Where the data may be, each with the folder of named sets."""
    root = data_root if data_root is not None else options.data_root
    if data is not None:
        yield data, root
        return
    data = options.data
    if data in datasets.DATASETS or ":" in data or data in lookup.installed("data"):
        roots = [root] if root is None or root.is_absolute() else [root, *_seen_from(run, root)]
        for each in roots:
            if each is root or each is None or each.is_dir():
                yield data, each
        return
    given = Path(options.data).expanduser()
    places = [given, *_seen_from(run, given)]
    if data_root is not None:
        places = [data_root / given.name, data_root / given, *places]
    for path in dict.fromkeys(places):
        if path.exists():
            yield str(path), root


def _seen_from(run: Run, path: Path) -> list[Path]:
    """The path relative to the run's folder and to those above it, one of which it was given in."""
    if path.is_absolute():
        return [run.folder / path.name, run.folder.resolve().parent / path.name]
    folder = run.folder.resolve()
    return [above / path for above in (folder, *folder.parents)]
