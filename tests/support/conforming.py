"""What the conformance suite stands on: every part by its slot, built by the command line's own
builder.

No part is named here or in the tests beside it. The parts are those of `lookup.members`; what a
test needs to know of one (its support, its kind, whether its draws are pathwise, which partner it
works with) is asked of the part itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae import check_pair
from pyro_vae.choices import lookup, registry
from pyro_vae.errors import UserError
from pyro_vae.objectives import Loss, Objective
from pyro_vae.pair.program import Program
from pyro_vae.pair.structure import Structure
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.options import Train

DEFAULTS = Train(latent_dim=2, net=f"{Train.net}(hidden=(4,))", steps=20)
EVENT_SHAPE = (1, 4, 4)
NUM_IMAGES, LEVELS, NUM_CLASSES = 12, 17, 2
SWAPPED = ("model", "prior", "likelihood", "guide", "objective", "net")
"""The slots of which one word of an experiment names a part."""


def names(slot: str) -> list[str]:
    """The parts listed in the slot's namespace."""
    return list(lookup.members(slot))


def every(slot: str) -> pytest.MarkDecorator:
    """Parametrise a test over a slot's parts."""
    return pytest.mark.parametrize(slot, names(slot))


def swaps(*slots: str) -> list[str]:
    """``slot=Name`` for every part of these slots."""
    return [f"{slot}={name}" for slot in slots for name in names(slot)]


# ------------------------------------------------------------------------------------------
# Building


def build(
    *,
    event_shape: tuple[int, ...] = EVENT_SHAPE,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """A fresh model and guide, as ``train`` would build them with these options beside tiny
    defaults.
    """
    model, guide = build_pair(
        replace(DEFAULTS, **options), event_shape, NUM_IMAGES, LEVELS, NUM_CLASSES
    )
    return model.to(dtype), guide.to(dtype)


def shaken(module: nn.Module, seed: int = 1) -> nn.Module:
    """The module away from its initial point, at which a flow may be the identity and a scale may
    be 1.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter += 0.3 / fan_in**0.5 * noise.to(parameter.dtype)
    return module


def images(model: nn.Module, number: int = NUM_IMAGES, seed: int = 2) -> Tensor:
    """Images that the model itself generates, so that they lie in its support."""
    training = model.training
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        x: Tensor = model.eval()(None, size=number, **labels(number, model))
    model.train(training)
    return x


def labels(number: int, *programs: Any) -> dict[str, Tensor]:
    """The field of a conditional model, where one of the programs takes it: else it is refused."""
    taken = any(Program("program", each).takes("y") for each in programs)
    return {"y": torch.arange(number) % NUM_CLASSES} if taken else {}


def rows(x: Tensor, *programs: Any) -> dict[str, Tensor]:
    """All fields of these images: ``index``, which the engine adds where it is not given, and the
    labels; to be given to the engine, or, with the programs, to a public function.
    """
    named = {"index": torch.arange(len(x)), **labels(len(x), *programs or (_takes_all,))}
    return {name: value.to(x.device) for name, value in named.items()}


def _takes_all(x: Tensor, **fields: Tensor) -> None: ...


# ------------------------------------------------------------------------------------------
# Which parts go together


@cache
def verdict(model: str, guide: str) -> Structure | Exception:
    """What `check_pair` says of the two: their structure, or what it raised."""
    try:
        pair = build(model=model, guide=guide)
        return check_pair(*pair, images(pair[0]), **labels(NUM_IMAGES, *pair)).structure
    except Exception as error:  # the test of this combination tells whether it is a sentence
        return error


@cache
def choices_for(swap: str) -> dict[str, str]:
    """The choices of an experiment with one part swapped in: the defaults where they work with it,
    else the first that do.
    """
    slot, name = swap.split("=", 1)
    guides = [name] if slot == "guide" else [DEFAULTS.guide, *names("guide")]
    models = [name] if slot == "model" else [DEFAULTS.model, *names("model")]
    goals = [name] if slot == "objective" else [DEFAULTS.objective, *names("objective")]
    own = {} if slot in ("guide", "model", "objective") else {slot: name}
    for guide in guides:
        for model in models:
            structure = verdict(model, guide)
            if isinstance(structure, Structure):
                for goal in goals:
                    if accepts(goal, structure):
                        return {"model": model, "guide": guide, **own, "objective": goal}
    pytest.fail(f"no model, guide and objective work with {swap}")


def accepts(objective: str, structure: Structure) -> bool:
    """Whether the objective serves such a pair."""
    try:
        goal(objective).check(structure)
    except UserError:
        return False
    return True


def goal(objective: str) -> Objective:
    """The objective of that name, with its defaults."""
    found: Objective = registry.build("objective", objective)
    return found


def programs(swap: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The pair with one part swapped in."""
    return build(**{k: v for k, v in choices_for(swap).items() if k != "objective"}, **settings)


def loss_of(swap: str, model: nn.Module, guide: nn.Module) -> Loss:
    """The loss module that ``swap`` is trained by."""
    return goal(choices_for(swap)["objective"])(model, guide)


def mean_loss(loss: Loss, x: Tensor, times: int = 8) -> float:
    """The mean of the loss over fixed noise."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        return sum(loss(x, **rows(x)).item() for _ in range(times)) / times


def one_line(error: BaseException) -> str:
    """The sentence of a refusal: one line, what is wrong and what to do."""
    assert isinstance(error, UserError), (
        f"a mistake of the user's raised {type(error).__name__}: {error}"
    )
    text = str(error)
    assert len(text.splitlines()) == 1, f"not one line: {text}"
    assert len(text) > 40, f"says too little: {text}"
    return text
