"""A run is a folder: config.toml, environment.json, metrics.jsonl, checkpoints/, results.json,
evaluations/, pictures.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from pyro_vae.choices import trust, user_code
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.files import set_aside, sweep, write_atomically, writing
from pyro_vae.runs.config_file import plain, stored_names, to_toml, train_from
from pyro_vae.runs.options import FREE_ON_RESUME, Train
from pyro_vae.runs.provenance import environment, own_code
from pyro_vae.runs.run_lock import HOLDER, LOCK, hold
from pyro_vae.training import checkpoint, checkpoint_files
from pyro_vae.training.checkpoint import Checkpoint

OF_THE_PAIR = (
    *("model", "prior", "likelihood", "guide", "net", "latent_dim"),
    *("seed", "data_seed"),
)
"""The options without which a checkpoint's tensors mean something else, or are another run's."""


def _inside(name: str) -> Any:
    """The path of that name in a run's folder."""
    return property(lambda run: run.folder / name)


@dataclass(frozen=True)
class Run:
    """One run's folder. ``made`` are the folders that were made for it, the outermost first."""

    folder: Path
    made: tuple[Path, ...] = field(default=(), repr=False)

    config_file = _inside("config.toml")  # all options as they were given
    environment_file = _inside("environment.json")  # versions and machine
    metrics_file = _inside("metrics.jsonl")  # one line an epoch
    results_file = _inside("results.json")  # how the training went, and every evaluation
    checkpoints = _inside("checkpoints")  # where the trained tensors are
    per_image_file = _inside("per_image.csv")  # the latest evaluation's figures by image

    def estimate_file(self, method: str, split: str) -> Path:
        """The latest estimate of its kind, for `pyro-vae compare`."""
        return self.folder / "evaluations" / f"{method}-{split}.npz"

    def trained(self, tell: Callable[[str], None] = lambda note: None) -> str:
        """The SHA-256 of the checkpoint that `load` takes; where none is sound, of the last one."""
        try:
            newest = checkpoint_files.newest(self.checkpoints)
        except checkpoint_files.Damaged:
            if not (found := checkpoint_files.complete(self.checkpoints)):
                raise
            return checkpoint_files.digest_of(found[-1])
        if newest.note:
            tell(newest.note)
        return checkpoint_files.digest_of(newest.path)

    def __str__(self) -> str:
        return shown(self.folder)

    # ---- writing

    def held(self) -> AbstractContextManager[None]:
        """Inside: this process has the folder's lock; a ``UserError`` if another process has it."""
        return hold(self.folder)

    def begin(self, options: Train, device: torch.device) -> None:
        """Write down what is about to be done, and where; the user's code in it is known from now
        on.
        """
        write_atomically(self.config_file, to_toml(options))
        code = own_code(options)
        for place, digest in code.items():
            trust.note(digest, place)
        said = {**environment(device, sys.argv), **({"code": code} if code else {})}
        write_json(self.environment_file, said)

    def code(self, trusted: bool) -> AbstractContextManager[None]:
        """Inside, the run's parts may be made, of the user's own code too where it is known or
        trusted.
        """
        code: Any = {}
        with suppress(OSError, ValueError, AttributeError):
            code = read_json(self.environment_file).get("code")
        return user_code.of_run(self.folder, trusted, code if isinstance(code, dict) else {})

    def resumed(self, device: torch.device) -> None:
        """Add where and by which command the run goes on to environment.json."""
        try:
            held = read_json(self.environment_file)
            before = list(held.get("resumed", []))
        except (OSError, ValueError, AttributeError, TypeError):  # a mere record: never in the way
            set_aside(self.environment_file, why="damaged")
            held, before = {}, []
        now = environment(device, sys.argv)
        write_json(self.environment_file, {**held, "resumed": [*before, now]})

    def sweep(self) -> None:
        """Remove what a killed process left half written."""
        for folder in (self.folder, self.checkpoints, self.folder / "evaluations"):
            sweep(folder)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Add one epoch to metrics.jsonl."""
        path = self.metrics_file
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write exactly these epochs to metrics.jsonl; its other lines are moved to
        metrics.jsonl.superseded.
        """
        lines = [json.dumps(finite(row)).encode() for row in rows]
        gone = [line for line in lines_of(self.metrics_file) if line not in lines]
        if gone:
            aside = self.metrics_file.with_name(f"{self.metrics_file.name}.superseded")
            write_atomically(aside, b"".join(line + b"\n" for line in (*lines_of(aside), *gone)))
        write_atomically(self.metrics_file, b"".join(line + b"\n" for line in lines))

    def add_result(self, **entries: Any) -> None:
        """Put entries into results.json; under ``evaluations`` they follow those that are there."""
        with FileLock(self.folder / ".results.lock"):
            results = self.results()
            evaluations = [*results.get("evaluations", []), *entries.pop("evaluations", [])]
            write_json(self.results_file, {**results, **entries, "evaluations": evaluations})

    def discard(self) -> None:
        """Take back what `create` and `begin` made, for a training that was refused; nothing else
        is touched.
        """
        own = self.config_file, self.environment_file, self.folder / LOCK, self.folder / HOLDER
        for path in own:
            path.unlink(missing_ok=True)
        for folder in reversed(self.made):
            with suppress(OSError):  # not empty: something of someone else's is in it
                folder.rmdir()

    # ---- reading

    def options(self) -> Train:
        """The training's options."""
        return train_from(self.config_file)

    def refuse_other_options(self, options: Train) -> None:
        """A ``UserError`` where this run can't be gone on with by these options. Earlier versions
        stored choices as they were typed: both are compared by their own names.
        """
        held, given = self.options().decided(), options.decided()
        for name in stored_names():
            if name not in FREE_ON_RESUME and getattr(held, name) != getattr(given, name):
                raise UserError(
                    f"{self} has a run with {name} = {getattr(held, name)!r}, not "
                    f"{getattr(given, name)!r}: give another --out, or move it away"
                )

    def rows(self) -> list[dict[str, Any]]:
        """The epochs in metrics.jsonl; a last line that a crash cut short is left out."""
        try:
            lines = [line.decode() for line in lines_of(self.metrics_file)]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.metrics_file}: damaged, it can't be read as text. Restore it, or "
                "move it away"
            ) from error
        rows = []
        for line in lines:
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def results(self) -> dict[str, Any]:
        """The contents of results.json; a ``UserError`` where that can't be read."""
        try:
            held = read_json(self.results_file)
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.results_file}: damaged, it is not JSON. Move it away, and evaluate again"
            ) from error
        if not isinstance(held, dict) or not isinstance(held.get("evaluations", []), list):
            raise UserError(
                f"{self.results_file}: not a results.json of pyro_vae; move it away, and evaluate "
                "again"
            )
        return held

    def load_pair(
        self, which: str = "last", tell: Callable[[str], None] = warnings.warn
    ) -> tuple[Any, Any, Checkpoint]:
        """Model and guide as `load` gives them, and the checkpoint that they come from; ``tell``
        hears of damaged ones.
        """
        from pyro_vae.runs.build_pair import build_pair

        if which not in ("last", "best"):
            raise UserError(did_you_mean("checkpoint", which, ("last", "best")))
        found = checkpoint_files.newest(self.checkpoints, best=which == "best")
        path, held = found.path, found.held
        if found.note:
            tell(found.note)
        self.check_config(held, path, OF_THE_PAIR)
        shape, num_data = held.metadata.get("event_shape"), held.metadata.get("num_data")
        sizes = [*shape, num_data] if isinstance(shape, list) else [0]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise UserError(
                f"{path}: not a checkpoint of a run (the shape of its images is missing)"
            )
        known = {
            name: held.metadata[name] for name in ("levels", "num_classes") if name in held.metadata
        }
        model, guide = build_pair(self.options(), sizes[:-1], sizes[-1], **known)
        checkpoint.restore(held, model, guide, str(path))
        return model.eval(), guide.eval(), held

    def check_config(self, held: Checkpoint, path: Path, names: Iterable[str]) -> None:
        """A ``UserError`` that names the fields in which config.toml is not what the checkpoint was
        written under.
        """
        then, now = held.metadata.get("config"), plain(self.options())
        if not isinstance(then, Mapping):  # of an older version
            return
        differing = [name for name in names if then.get(name) != now.get(name)]
        if differing:
            words = "; ".join(
                f"{name} is {now.get(name)!r} there and {then.get(name)!r} in the checkpoint"
                for name in differing
            )
            raise UserError(
                f"{self.config_file}: not the configuration of {path.name}: {words}; restore the "
                "file"
            )


class Unwritten(Run):
    """A run as all but the first of several processes have it: read, and never written to."""

    def held(self) -> AbstractContextManager[None]:
        """The first process has it."""
        return nullcontext()

    def _nothing(self, *args: Any, **named: Any) -> None: ...

    begin = resumed = sweep = add_row = write_rows = add_result = discard = _nothing


def shown(path: Path) -> str:
    """The path relative to the current folder where it is in it, else as it is."""
    with suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def finite(value: Any) -> Any:
    """``value`` with NaN and infinities as None, for JSON has none; containers are copied."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file, none where there is no file."""
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, held: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(finite(held), indent=2, ensure_ascii=False) + "\n").encode())
