"""The stepper: it selects what is trained, the optimiser, and the form of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pyro_vae.compile.trace import NotStageable
from pyro_vae.data.batches import Source
from pyro_vae.data.observations import Observation
from pyro_vae.distributed import Group
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.objectives import Loss
from pyro_vae.pair.nodes import copies, taken
from pyro_vae.pair.parameters import tensors_of
from pyro_vae.pair.rescoring import leaves
from pyro_vae.pair.runtime import Pair
from pyro_vae.training.optimizers import make_optimizer
from pyro_vae.training.options import FitOptions
from pyro_vae.training.select_step import select_step
from pyro_vae.training.train_step import TrainStep
from pyro_vae.training.updates import Health, Update


class Stepper:
    """The training step of a pair, and the source of its batches."""

    def __init__(
        self,
        loss: Loss,
        source: Source,
        observe: Observation | None,
        options: FitOptions,
        total_steps: int,
        group: Group,
    ) -> None:
        self.loss, self.observe, self.options, self.group = loss, observe, options, group
        self.health = Health.on(loss.kl_weight.device, skip=options.on_divergence == "skip")
        self.optim: torch.optim.Optimizer | None = None
        self._source, self.total_steps = source, total_steps
        self.tier: str = options.compile
        self.find()

    def find(self) -> None:
        """The parameters that training reaches now, the optimiser of these, and the step."""
        x, fields = next(self._source.in_order())
        pair, options = self.loss.pair, self.options
        most = (
            5 if self.loss.objective.stageable else len(x)
        )  # Pyro's moving baselines have the size of their batch
        few = copies(*taken(x, fields, slice(most)))
        self.parameters = trainable(self.loss, *few, options.freeze, self.observe)
        if self.optim is None:
            self.optim = make_optimizer(
                options.optimizer, self.parameters, options.learning_rate, pair.name_of
            )
        else:  # at the rate of the first group, with a state that begins at zero
            known = {id(p) for group in self.optim.param_groups for p in group["params"]}
            self.optim.param_groups[0]["params"] += [
                p for p in self.parameters if id(p) not in known
            ]
            for group in self.optim.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a frozen one would be moved by its last gradient
        self.update = Update(
            self.optim, self.parameters, self.health, options.grad_clip, self.group.reduce
        )
        eager = TrainStep(self.loss, self.parameters, self.update, self.observe)
        with pair.active(training=True):
            chosen = select_step(eager, self.tier, self.total_steps, self._source, options.seed)
        self.step, self.source, why = chosen
        self.note = "; ".join(filter(None, (why, self.source.note)))
        self.tier = self.step.tier
        self._seen = self._signature()

    def follow(self) -> bool:
        """Find everything again where a parameter was frozen, freed or replaced since; whether it
        was.
        """
        changed = self._signature() != self._seen
        if changed:
            self.find()
        return changed

    def recheck(self, seed: int) -> None:
        """Compare a staged step with the programs as they are now, on rows drawn again.

        Raises:
            UserError: a Python value that the programs read has changed since they were traced.
        """
        with self.loss.pair.active(training=True):
            try:
                self.step.check(self._source.drawn(seed))
            except NotStageable as reason:
                raise UserError(
                    f"the {self.tier} step differs from the programs ({reason}): a Python value "
                    "that they read has changed since they were traced, so the steps since "
                    "then are wrong. Train with compile='off'"
                ) from None

    def _signature(self) -> list[tuple[int, bool]]:
        return [(id(p), p.requires_grad) for p in self.loss.pair.parameters()]


def trainable(
    loss: Loss,
    x: Tensor,
    fields: Mapping[str, Tensor],
    freeze: str | None = None,
    observe: Observation | None = None,
) -> list[nn.Parameter]:
    """What a training step may change: the leaves of the loss, and what the programs' modules have
    besides.

    Train mode may reach more than a dry run does; a parameter that a step does not reach gets no
    update there.
    """
    pair = loss.pair
    with pair.probing(), torch.enable_grad():
        value = loss.step(pair.cast(x if observe is None else observe(x)), fields).loss
    reached = leaves(value)
    every = {id(p): p for p in (*reached, *pair.parameters()) if p.requires_grad}
    frozen = {id(p) for p in frozen_by(pair, freeze, [*every.values()])}
    kept = {i: p for i, p in every.items() if i not in frozen}
    if not any(id(p) in kept for p in reached):
        why = (
            f"freeze={freeze!r} leaves none"
            if freeze
            else "the loss depends on no tensor that requires a gradient"
        )
        raise UserError(
            f"there is nothing to train: {why}. Register networks with pyro.module, or use "
            "PyroModules"
        )
    return sorted(kept.values(), key=pair.name_of)


def frozen_by(pair: Pair, freeze: str | None, every: Sequence[Tensor]) -> list[Tensor]:
    """Those of the parameters that are the program's, or have a name, as in `parameters`, that
    matches the pattern.
    """
    if freeze in (None, "model", "guide"):
        return [p for p in every if pair.name_of(p)[0] == freeze]
    named = {name: own.tensor for name, own in tensors_of(pair).items() if own.kind != "buffer"}
    if found := [each for name, each in named.items() if fnmatchcase(name, freeze)]:
        return found
    parts = {f"{'.'.join(name.split('.')[:2])}.*" for name in named if "." in name}
    known = ["model", "guide", *parts]
    raise UserError(did_you_mean("part to freeze", freeze, known))
