"""The state of a training between two steps: taken, saved, loaded and restored."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.ambient import unusual
from pyro_vae.errors import UserError
from pyro_vae.pair.runtime import Pair
from pyro_vae.training import checkpoint_files
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.history import History, Record
from pyro_vae.training.snapshot import (
    PROGRAMS,
    Position,
    mapped,
    restore_optimizer,
    restore_tensors,
    tensors_of,
)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The complete state of a training between two steps, for ``fit(…, resume=state)``.

    It consists of plain values and tensors only.

    Args:
        position: how far it is.
        tensors: ``model`` and ``guide`` as their state_dicts, ``other`` for the rest.
        optimizer: the optimiser's state_dict.
        random: torch's random numbers, by device.
        history: the records so far, as plain values.
        callbacks: (class name, state) of the callbacks that have a state.
        settings: the arguments of `fit`, as text.
        place: device, tier and threads of the steps.
    """

    position: Position
    tensors: Mapping[str, Mapping[str, Any]]
    optimizer: Mapping[str, Any]
    random: Mapping[str, Tensor]
    history: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Sequence[Any]] = ()  # (class name, state_dict) of those that have a state
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `fit`, in words, to be compared
    place: Mapping[str, Any] = field(default_factory=dict)  # where and how the steps ran

    @staticmethod
    def take(
        pair: Pair,
        optimizer: torch.optim.Optimizer,
        position: Position,
        history: History,
        callbacks: Sequence[Any],
        *about: Mapping[str, Any],
    ) -> TrainingState:
        """The present state, its tensors the living ones; ``about`` are settings and place."""
        random = {"cpu": torch.get_rng_state()}
        if position.sums.is_cuda:
            random["cuda"] = torch.cuda.get_rng_state(position.sums.device)
        held = asdict(history)
        return TrainingState(
            replace(position),
            tensors_of(pair),
            optimizer.state_dict(),
            random,
            {**held, "resumed": list(held["resumed"])},
            [
                [type(c).__name__, c.state_dict()]
                for c in callbacks
                if hasattr(c, "load_state_dict")
            ],
            *about,
        )

    def restore(
        self, pair: Pair, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> Position:
        """Put tensors and random numbers back, on ``device``, and give the position.

        Raises:
            UserError: the tensors are not the pair's, or the optimiser's state is not such an
                optimiser's.
        """
        restore_tensors(pair, self.tensors)
        restore_optimizer(optimizer, self.optimizer)
        torch.set_rng_state(self.random["cpu"])
        if device.type == "cuda" and "cuda" in self.random:
            torch.cuda.set_rng_state(self.random["cuda"].cpu(), device)
        return replace(self.position, sums=self.position.sums.to(device, copy=True))

    @property
    def step(self) -> int:
        """The number of steps that are done."""
        return self.position.step

    @property
    def epochs(self) -> int:
        """The number of whole epochs that are done."""
        return len(self.history["train"])

    def copy(self) -> TrainingState:
        """A copy with tensors of its own."""
        return mapped(self, torch.clone)

    def to_checkpoint(self, metadata: Mapping[str, Any]) -> Checkpoint:
        """The state as sections of a checkpoint, with its tensors on the CPU."""
        parts = dict(vars(self))
        sections = {**parts.pop("tensors"), **{n: parts.pop(n) for n in ("optimizer", "random")}}
        rest = {**parts, "position": asdict(self.position)}
        moved: dict[tuple[Any, ...], Tensor] = {}  # one copy of what several names share
        return mapped(
            Checkpoint(
                {**sections, "training": rest},
                {**metadata, "step": self.step, "epoch": self.epochs},
            ),
            lambda tensor: moved.setdefault(_place(tensor), tensor.detach().cpu()),
        )

    @staticmethod
    def from_checkpoint(held: Checkpoint, name: str) -> TrainingState:
        """The state in a checkpoint; ``name`` is the file's name, for the error.

        Raises:
            UserError: the checkpoint has no such state.
        """
        rest = held.sections.get("training")
        if rest is None:
            raise UserError(
                f"{name}: it has parameters but no state of the training (an older version "
                "wrote it, or it is the best checkpoint of a training). It can be evaluated, "
                "but not resumed"
            )
        try:
            position = Position(**rest["position"])
            if not isinstance(position.sums, Tensor) or not all(
                type(n) is int for n in (position.step, position.seen)
            ):
                raise TypeError("position")
            tensors = {n: held.sections[n] for n in (*PROGRAMS, "other") if n in held.sections}
            own: dict[str, Any] = {n: held.sections[n] for n in ("optimizer", "random")}
            own |= {n: rest[n] for n in ("history", "callbacks", "settings", "place")}
            state = TrainingState(position, tensors, **own)
            state.records()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{name}: its state of the training is incomplete;  {checkpoint_files.AGAIN}"
            ) from error
        return state

    def save(self, path: str | Path) -> None:
        """Write the state into one file, atomically; its SHA-256 goes into a second file."""
        checkpoint_files.save(Path(path), self.to_checkpoint({}))

    @staticmethod
    def load(path: str | Path) -> TrainingState:
        """Read a file of `save`, or the newest undamaged checkpoint of a folder of ``Checkpoints``.

        Args:
            path: the file or the folder.

        Returns:
            The state.

        Raises:
            UserError: there is no such file, or it is damaged, of a newer version, or has no state
                of a training.
        """
        if Path(path).is_dir():
            found = checkpoint_files.newest(Path(path))
            if found.note:
                warnings.warn(found.note, stacklevel=2)
            return TrainingState.from_checkpoint(found.held, str(found.path))
        return TrainingState.from_checkpoint(checkpoint_files.load(Path(path)), str(path))

    # ---- what `fit` does with it

    def records(self) -> History:
        """The history so far."""
        parts: dict[str, Any] = {
            name: [Record(**each) for each in self.history[name]] for name in ("train", "valid")
        }
        rest = {name: value for name, value in self.history.items() if name not in parts}
        return History(**parts, **{**rest, "resumed": tuple(rest.get("resumed", ()))})

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """A ``UserError`` that names what differs between the training that was stopped and the one
        that would go on.
        """
        names = [*self.settings, *(name for name in settings if name not in self.settings)]
        differing = [name for name in names if self.settings.get(name) != settings.get(name)]
        if differing:
            words = "; ".join(
                f"{name} {self.settings.get(name)} there, {settings.get(name)} here"
                for name in differing
            )
            raise UserError(
                f"resume: the state is of another training ({words}): give the same "
                "options, or start a new training"
            )

    def restore_callbacks(self, callbacks: Sequence[Any]) -> None:
        """Give each callback its state back; a ``UserError`` where they are not the same ones."""
        stateful = [each for each in callbacks if hasattr(each, "load_state_dict")]
        kept, here = (
            [name for name, _ in self.callbacks],
            [type(each).__name__ for each in stateful],
        )
        if kept != here:
            raise UserError(
                f"resume: the state has the callbacks {', '.join(kept) or 'none'}, but the "
                f"given ones are {', '.join(here) or 'none'}: give the same ones in the same "
                "order"
            )
        for callback, (_, state) in zip(stateful, self.callbacks, strict=True):
            callback.load_state_dict(state)


def this_place(device: torch.device, tier: str) -> dict[str, Any]:
    """Where and how the steps run: what must be equal for equal bits. Names no host."""
    on_gpu = device.type == "cuda"
    return {
        "tier": tier,
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "ambient": "; ".join(unusual(device)) or "torch's defaults",
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In one clause, why the bits may not be those of a training that was never stopped; or
    nothing.
    """
    changed = [
        f"{name} {then[name]} there, {now[name]} here"
        for name in now
        if name in then and then[name] != now[name]
    ]
    if changed:
        return (
            f"the resumed training is not bit for bit the uninterrupted one ({'; '.join(changed)})"
        )
    if now["device"] != "cpu":
        return "the device's random state is restored, but a GPU's sums may differ in the last bits"
    return ""


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device
