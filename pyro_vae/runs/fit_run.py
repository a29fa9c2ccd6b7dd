"""The training of a run, new or resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from pyro_vae.distributed import Lost
from pyro_vae.errors import UserError, first_line
from pyro_vae.files import CantWrite
from pyro_vae.memory import is_out_of_memory
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.runs.build_pair import about_the_data
from pyro_vae.runs.config_file import plain, stored_names
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.options import FREE_ON_RESUME
from pyro_vae.runs.run import Run, shown
from pyro_vae.runs.run_lock import keep
from pyro_vae.signals import Failure, Stopped, postponed
from pyro_vae.training import checkpoint_files
from pyro_vae.training.callbacks import EarlyStopping, EpochEnd
from pyro_vae.training.checkpoint import state_of
from pyro_vae.training.checkpoints import Checkpoints
from pyro_vae.training.fit import Diverged, fit
from pyro_vae.training.history import History, Record
from pyro_vae.training.settings import Settings
from pyro_vae.training.state import TrainingState


def last_state(
    run: Run, tell: Callable[[str], None]
) -> tuple[TrainingState | None, Mapping[str, Any]]:
    """What the run's newest sound checkpoint has and its metadata, or None where none was
    written; ``tell`` hears which one is taken.

    Raises:
        UserError: it is of another configuration, of a newer version, or all of them are damaged
            or gone.
    """
    if not any(checkpoint_files.listed(run.checkpoints, best) for best in (False, True)):
        epochs = len(run.rows())
        if epochs > 1 or run.results().get(
            "training"
        ):  # the first epoch is the one that may end without a checkpoint
            raise UserError(
                f"{run}: no checkpoint in {run.checkpoints.name}, but {epochs} epochs in "
                f"{run.metrics_file.name}: restore the folder from a copy, or train a new run"
            )
        tell(f"{run} has no checkpoint yet: its training starts at the first step")
        return None, {}
    found = checkpoint_files.newest(run.checkpoints)
    state = TrainingState.from_checkpoint(found.held, str(found.path))
    run.check_config(
        found.held, found.path, [name for name in stored_names() if name not in FREE_ON_RESUME]
    )
    if found.note:
        tell(found.note)
    return state, found.held.metadata


def fit_run(
    experiment: Experiment, run: Run, device: torch.device, state: TrainingState | None
) -> History:
    """Train, from ``state`` where there is one, with checkpoints on the way; signals wait for the
    end of a step.

    Raises:
        UserError: what can't be trained; a run that was made for it is taken back.
        Failure: it diverged, or a checkpoint can't be written; the line names the one that is kept.
        Stopped: by a signal, after a checkpoint was written.
    """
    options = experiment.options
    known = {
        "event_shape": list(experiment.data.event_shape),
        "num_data": len(experiment.train_rows),
        "config": plain(options),
        "data_sha256": experiment.data.sha256,
        "data_levels": experiment.data.levels,
        "classes": list(experiment.data.classes or ()),
        **about_the_data(options, experiment.data),
    }
    new = options.resume is None
    recorder = Recorder(run, known, options.checkpoint_minutes)
    try:
        with postponed() as recorder.waiting:
            if new:
                run.begin(options, device)
            else:
                run.resumed(device)
                if state is None:
                    run.write_rows([])
            return _fit(experiment, recorder, device, state)
    except UserError:
        if new and not recorder.rows and recorder.last is None:
            run.discard()
        raise
    except Stopped as stopped:
        stopped.kept = stopped.kept or recorder.kept()
        raise
    except Lost as lost:
        raise Lost(f"{lost}; {recorder.kept()}") from lost
    except (OSError, RuntimeError, MemoryError) as error:
        kept = recorder.kept()
        if isinstance(error, CantWrite):
            what = f"{run} can't be written: {error.strerror} ({error.filename})"
            if not run.config_file.is_file():
                run.discard()
        elif isinstance(error, OSError):  # of the data or a part, which read and write files
            what = first_line(error)
        elif is_out_of_memory(error):
            what = (
                f"this training does not fit into the memory ({first_line(error)}): use a smaller "
                "net, a smaller --batch-size or another device"
            )
        else:
            raise
        raise Failure(f"{what}; {kept}") from error


def _fit(
    experiment: Experiment, recorder: Recorder, device: torch.device, state: TrainingState | None
) -> History:
    number = experiment.options.early_stopping
    stopping: list[Any] = [EarlyStopping(number)] if number is not None else []
    arguments = fit_arguments(experiment, device)
    try:
        return fit(**arguments, callbacks=[*stopping, recorder], resume=state)
    except Diverged as error:
        if error.state is not None:
            recorder.save(error.state)
        kept = recorder.group.once(recorder.kept)
        raise Failure(f"{error}{if_large(experiment)}; {kept}") from error


def fit_arguments(experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """All that `fit` is given for an experiment, but for who looks on."""
    options = experiment.options
    return {
        "model": experiment.model,
        "guide": experiment.guide,
        "x_train": experiment.x_train,
        **{each.name: getattr(options, each.name) for each in fields(Settings)},
        "num_epochs": options.epochs or 1,
        "num_steps": options.steps,
        "init": options.init_from,
        "binarize": experiment.observed.observe,
        "x_valid": experiment.x_valid,
        "device": device,
        "progress": not options.quiet,
        **experiment.fields_train,
    }


LARGE = 30.0
"""Values that a network at its initial weights takes to where a scale is 0 or infinite."""


def if_large(experiment: Experiment) -> str:
    """What to do about real values that are large; else nothing."""
    largest = float(experiment.observed.x_test.nan_to_num().abs().max())
    if experiment.data.levels is not None or largest < LARGE:
        return ""
    return (
        f"; the values go up to {largest:.4g}: scale the data, such as to mean 0 and standard "
        "deviation 1"
    )


def dry_run(experiment: Experiment, device: torch.device) -> Structure:
    """The pair's structure on a few test images, once it is sure that a checkpoint can store
    the pair.

    Raises:
        UserError: a bad pair, or one with parameters that no ``state_dict`` has.
    """
    state_of(experiment.model, experiment.guide)
    pair = Pair.of(experiment.model, experiment.guide).to(device)
    few = pair.cast(experiment.observed.x_test[:5].to(device))
    named = {name: value[:5].to(device) for name, value in experiment.fields("test", None).items()}
    try:
        structure = pair.structure(few, {**named, "index": torch.arange(len(few), device=device)})
    except UserError as error:
        raise UserError(f"{error}{if_large(experiment)}") from error
    if pair.store.parameters:
        raise UserError(
            f"pyro.param({next(iter(pair.store.parameters))!r}) is in no module's state_dict, "
            "so a checkpoint would not have it: make it an nn.Parameter or a PyroParam of the "
            "model or guide"
        )
    return structure


class Recorder(Checkpoints):
    """The callback of a run: it writes epochs to metrics.jsonl, and checkpoints."""

    def __init__(self, run: Run, metadata: Mapping[str, Any], minutes: float) -> None:
        super().__init__(run.checkpoints, minutes, metadata)
        self.run = run
        self.rows: list[dict[str, Any]] = []

    def __call__(self, end: EpochEnd) -> None:
        """Record the epoch; never ends the training."""
        super().__call__(end)
        row = {
            "epoch": end.train.epoch,
            "step": end.train.step,
            "seconds": round(end.history.seconds, 3),
            "skipped": end.history.skipped,
            "train": _figures(end.train),
            "valid": None if end.valid is None else _figures(end.valid),
        }
        self.rows.append(row)
        self.run.add_row(row)

    def save(self, state: TrainingState) -> None:
        """Write this state, the folder being this process's own still."""
        keep(self.run.folder)
        super().save(state)

    def kept(self) -> str:
        """Which checkpoint there is, and how to go on from it."""
        self._look()
        if self.last is None:
            return "no checkpoint was written yet"
        return f"checkpoint: {shown(self.last)}; continue with: pyro-vae train --resume {self.run}"

    def state_dict(self) -> dict[str, Any]:
        """The rows of metrics.jsonl too, so that the file is what the checkpoint says."""
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write metrics.jsonl again: rows of epochs that the checkpoint has not seen will come
        again.
        """
        super().load_state_dict(state)
        self.rows = [dict(row) for row in state["rows"]]
        self.run.write_rows(self.rows)


def _figures(record: Record) -> dict[str, float]:
    """A record without its place."""
    return {key: value for key, value in asdict(record).items() if key not in ("epoch", "step")}
