"""Parts of a training's state: its position, a pair's tensors and an optimiser's, put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.pair.runtime import Pair
from pyro_vae.training import checkpoint

PROGRAMS = ("model", "guide")


@dataclass
class Position:
    """How far a training is: ``step`` steps, the epoch under way having begun after ``first_step``
    of them.
    """

    sums: Tensor  # (3,) float64, this epoch's so far: loss, reconstruction, KL
    epoch: int = 1
    step: int = 0
    first_step: int = 0
    seen: int = 0  # images of this epoch whose figures are in the sums
    skipped: int = 0  # steps of the whole training that were taken back

    @staticmethod
    def start(device: torch.device) -> Position:
        """Before the first step."""
        return Position(torch.zeros(3, dtype=torch.float64, device=device))

    def begin_epoch(self, epoch: int) -> None:
        """This epoch begins here."""
        self.epoch, self.first_step, self.seen, self.sums = (
            epoch,
            self.step,
            0,
            torch.zeros_like(self.sums),
        )


def restore_tensors(pair: Pair, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Put `tensors_of` back into the very tensors that are there; a ``UserError`` where they are
    not the pair's.
    """
    checkpoint.restore_sections(sections, _owners(pair), "the state")
    other, held = _other(pair), sections.get("other", {})
    if {n: t.shape for n, t in other.items()} != {n: t.shape for n, t in held.items()}:
        raise UserError(
            f"the state has {_counted(held)} besides those of model and guide, but the pair "
            f"has {_counted(other)}: resume with the same programs that were trained"
        )
    with torch.no_grad():
        for name, tensor in other.items():
            tensor.copy_(held[name])


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Copy a saved state into the optimiser's own tensors where it has them, as a staged step has
    on to those.

    Its rate and other numbers are its own: those that it was made with today.

    A parameter that no step had reached has no saved state: an Adam's own begins at zero.
    """
    # state_dict gives the living tensors, and load_state_dict would take the saved ones for its own
    present, state = optimizer.state_dict()["state"], saved["state"]
    if not state and not isinstance(optimizer, torch.optim.Adam):
        optimizer.state.clear()
        return
    if all(_fits(present.get(i, {}), entries) for i, entries in state.items()):
        with torch.no_grad():
            for i, entries in present.items():
                for name, value in entries.items():
                    if isinstance(value, Tensor):
                        value.zero_() if i not in state else value.copy_(state[i][name])
        return
    try:
        pairs = zip(optimizer.param_groups, saved["param_groups"], strict=True)
        groups = [{**own, "params": was["params"]} for own, was in pairs]
        optimizer.load_state_dict({"state": mapped(state, torch.clone), "param_groups": groups})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"resume: the optimiser's state is not one of this optimiser ({error})"
        ) from error


def _fits(present: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether these are the same tensors, each of the same shape."""
    return present.keys() == saved.keys() and all(
        isinstance(value, Tensor) and value.shape == saved[name].shape
        for name, value in present.items()
    )


def _owners(pair: Pair) -> dict[str, torch.nn.Module]:
    found = {role: getattr(pair, role).owner for role in PROGRAMS}
    return {role: owner for role, owner in found.items() if owner is not None}


def tensors_of(pair: Pair) -> dict[str, dict[str, Any]]:
    """``model`` and ``guide`` as their state_dicts, ``other`` for the rest."""
    sections: dict[str, dict[str, Any]] = {
        role: dict(owner.state_dict()) for role, owner in _owners(pair).items()
    }
    other = {name: tensor.detach() for name, tensor in _other(pair).items()}
    return {**sections, "other": other} if other else sections


def _other(pair: Pair) -> dict[str, Tensor]:
    """Parameters and buffers that no state_dict of the programs has: in closures, or made by
    ``pyro.param``.
    """
    known = {
        id(t) for owner in _owners(pair).values() for t in owner.state_dict(keep_vars=True).values()
    }
    private = {f"pyro.param {name}": parameter for name, parameter in pair.store.parameters.items()}
    known |= {id(parameter) for parameter in private.values()}
    hidden = [tensor for tensor in pair.tensors() if id(tensor) not in known]
    return {**private, **{f"hidden {i}": tensor for i, tensor in enumerate(hidden)}}


def _counted(tensors: Mapping[str, Any]) -> str:
    return f"{len(tensors)} tensors" if len(tensors) != 1 else "one tensor"


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{key: mapped(each, change) for key, each in vars(value).items()})
    return value
