"""How long a cell is trained: as published, or for a stated budget that its results carry and are
never mixed with others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from pyro_vae.data.batches import Resident
from pyro_vae.errors import UserError
from pyro_vae.runs.options import Train

FULL = "full"
_FORM = re.compile(r"(\d+)\s*(pass|passes|step|steps|%)?")


@dataclass(frozen=True)
class Budget:
    """What of a published protocol is run.

    ``passes``, ``steps`` or ``percent`` of the published steps shorten the training: the schedule,
    and a KL warm-up, shrink in proportion. ``num_samples`` and ``num_images`` shorten the
    evaluation, which only a shortened training may have. Another seed is another set of results as
    well.
    """

    passes: int | None = None
    steps: int | None = None
    percent: int | None = None
    num_samples: int | None = None
    num_images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.full and (self.num_samples is not None or self.num_images is not None):
            raise UserError(
                "the full protocol has an evaluation of its own: give --samples and --images with "
                "a --budget"
            )

    @property
    def full(self) -> bool:
        """Whether the training is as long as published."""
        return self.passes is self.steps is self.percent is None

    @property
    def label(self) -> str:
        """What files and folders of these results are called, and what is compared before anything
        is added to them.
        """
        lengths = {"passes": self.passes, "steps": self.steps, "percent": self.percent}
        parts = [f"{number}-{unit}" for unit, number in lengths.items() if number is not None] or [
            FULL
        ]
        parts += [f"K{self.num_samples}"] if self.num_samples is not None else []
        parts += [f"N{self.num_images}"] if self.num_images is not None else []
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join(parts)

    def options(self, published: Train, num_train: int, num_test: int) -> Train:
        """The options of one cell under this budget, whose training and test set have so many
        images.

        Raises:
            UserError: the budget is longer than the published training.
        """
        options = replace(published, seed=self.seed)
        if self.full:
            return options
        whole = full_steps(published, num_train)
        if self.steps is not None:
            chosen = self.steps
        elif self.passes is not None:
            chosen = self.passes * steps_per_pass(published, num_train)
        else:
            chosen = max(1, whole * (self.percent or 0) // 100)
        if chosen > whole:
            raise UserError(
                f"the budget of {chosen} steps is longer than the published training, {whole}: "
                "leave --budget out"
            )
        warmup, fewer = (
            options.kl_warmup,
            self.num_images is not None and self.num_images < num_test,
        )
        return replace(
            options,
            epochs=None,
            steps=chosen,
            kl_warmup=warmup * chosen / whole
            if isinstance(warmup, float)
            else warmup,  # a share of the steps else
            num_samples=self.num_samples or options.num_samples,
            eval_images=self.num_images if fewer else options.eval_images,
        )


def read_budget(
    text: str | None, num_samples: int | None = None, num_images: int | None = None, seed: int = 0
) -> Budget:
    """``30``, ``"30 passes"``, ``"20000 steps"`` or ``"10%"`` of the published steps; None is the
    full protocol.

    Raises:
        UserError: anything else.
    """
    shorter: dict[str, int | None] = {"num_samples": num_samples, "num_images": num_images}
    if text is None:
        return Budget(**shorter, seed=seed)
    found = _FORM.fullmatch(text.strip())
    if found is None or int(found[1]) < 1:
        raise UserError(
            f"--budget {text!r}: expected passes over the training set, steps, or a share of the "
            "published steps, such as '30 passes', '20000 steps' or '10%'"
        )
    unit = {"s": "steps", "%": "percent"}.get((found[2] or "p")[0], "passes")
    shorter[unit] = int(found[1])
    return Budget(**shorter, seed=seed)


def steps_per_pass(options: Train, num_train: int) -> int:
    """Batches of a pass over what is not held out."""
    held_out = max(1, round(options.valid_fraction * num_train)) if options.valid_fraction else 0
    fitted = torch.empty(num_train - held_out, 0)
    return Resident(fitted, {}, options.batch_size, torch.device("cpu")).num_batches


def full_steps(options: Train, num_train: int) -> int:
    """The optimiser steps of the training as configured."""
    decided = options.decided()
    return (
        decided.steps
        if decided.steps is not None
        else (decided.epochs or 1) * steps_per_pass(options, num_train)
    )
