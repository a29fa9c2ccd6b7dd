"""The base class of objectives: a `pyro.infer.ELBO` that stock SVI takes, and its loss module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.objectives.calls import batch_of
from pyro_vae.pair.nodes import Fields, plain_draw
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.terms import SiteTerms
from pyro_vae.validation import check_whole


@dataclass(frozen=True)
class Estimate:
    """The figures of one batch, in nats summed over it: the loss, and the two parts of the ELBO."""

    loss: Tensor  # 0-dim, −bound, scaled as Pyro's
    reconstruction: Tensor  # 0-dim, Σ log p(x | z), unscaled, the mean over particles
    kl: Tensor  # 0-dim, Σ log q(z | x) − log p(z), or its closed form, unscaled and at KL weight 1
    plate_scale: float  # what a subsampling plate multiplied the loss by

    def figures(self) -> Tensor:
        """(loss without the plate's scale, reconstruction, KL), summed over the batch: ``(3,)``
        float64.
        """
        parts = self.loss.detach() / self.plate_scale, self.reconstruction, self.kl
        return torch.stack(parts).double()


@dataclass(frozen=True)
class Objective(ELBO):
    """An objective and its settings; ``objective(model, guide)`` is the loss module.

    It is a `pyro.infer.ELBO`, so ``SVI(model, guide, optim, loss=objective)`` trains with it. There
    the parameters are in Pyro's own store, and the KL weight is 1. In `fit` the KL weight β
    multiplies the terms of the latent sites, log p(z) − log q(z | x) or the KL, wherever a bound
    has them.
    """

    slot: ClassVar[str] = "objective"
    vectorize_particles: ClassVar[bool] = (
        False  # of `_get_traces`, Pyro's own, which yields traces one by one
    )
    max_plate_nesting: ClassVar[float] = inf
    counts: ClassVar[tuple[str, ...]] = ("num_particles",)  # the settings that are numbers of draws
    stageable: ClassVar[bool] = True  # whether its estimate can be traced
    # whether it is a mean over draws, in which the values of an enumerated site are weighted ones
    enumerates: ClassVar[bool] = False
    stock: ClassVar[type[ELBO] | None] = (
        None  # Pyro's own of the same loss and gradient, at one particle
    )
    # (guide, x, fields) → the guide's draws, and the densities that they are scored by
    draw: ClassVar[Any] = staticmethod(plain_draw)

    @property
    @abstractmethod
    def num_particles(self) -> int:
        """The number of draws of z for each image."""

    def __post_init__(self) -> None:
        for name in self.counts:
            check_whole(f"{type(self).__name__}({name}={{!r}})", getattr(self, name), "draws")

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Loss:
        return Loss(self, Pair.of(model, guide))

    # ---- as stock SVI calls it

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, −bound of one batch, whose gradient is the estimator.

        Args:
            model, guide: Pyro programs, run under Pyro's own parameter store.
            *args: x, ``(B, *event_shape)``, then the named fields in the order of the programs'
                arguments; tensors with one row for each image.
            **kwargs: the same by name.

        Returns:
            A 0-dim tensor: nats summed over the batch, scaled as Pyro's.

        Raises:
            UserError: what is wrong with the pair, or with an argument.
        """
        value: Tensor = Loss(self, Pair.of(model, guide).in_pyros_store)(*args, **kwargs)
        return value

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """`differentiable_loss` as a number, without gradients."""
        with torch.no_grad():
            value: float = self.differentiable_loss(model, guide, *args, **kwargs).item()
        warn_if_nan(value, "loss")
        return value

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """`differentiable_loss` as a number; its gradient is added to each parameter's ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        value: float = loss.item()
        warn_if_nan(value, "loss")
        return value

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        """One run of the two programs, as Pyro's base class asks for."""
        traces: tuple[Trace, Trace] = get_importance_trace(
            "flat", self.max_plate_nesting, model, guide, args, kwargs
        )
        return traces

    # ---- what makes it this objective

    def run(self, pair: Pair, x: Tensor, fields: Fields, kl_weight: Tensor) -> Estimate:
        """The estimate of one batch, the pair being active."""
        structure = pair.structure(x, fields, scored=False)
        if (suited := self.suited(structure)) is not self:
            return suited.run(pair, x, fields, kl_weight)
        self.check(structure)
        return self.estimate(self.terms(pair, x, fields), structure, kl_weight)

    def terms(self, pair: Pair, x: Tensor, fields: Fields) -> SiteTerms:
        """The sites of one batch at this objective's draws."""
        layout = None
        if self.num_particles > 1:
            chosen = pair.layout(x, fields, every_value=True)
            layout = self.layout(pair.structure(x, fields), chosen)
        return pair.run(x, fields, self.num_particles, layout, draw=self.draw, every_value=True)

    def suited(self, structure: Structure) -> Objective:
        """This objective; Pyro's own of the same loss for a pair that only Pyro's own code trains.

        Raises:
            UserError: Pyro has none.
        """
        if not structure.by_pyro:
            return self
        from pyro_vae.objectives.pyro_elbo import counterpart

        return counterpart(self, structure)

    def check(self, structure: Structure) -> None:
        """Raise a ``UserError`` if this objective can't train such a pair."""
        for name, what in structure.asked.items():
            raise UserError(
                f"site {name!r} of the guide asks {what}; {type(self).__name__} would use a plain "
                "score-function gradient instead: give that objective, or leave the request out"
            )
        if structure.enumerated and not self.enumerates:
            raise UserError(
                f"site {next(iter(structure.enumerated))!r} of the guide asks to be enumerated, "
                f"but in the log weights of {type(self).__name__} the sum over y removes q(y | "
                "x), which would get no gradient: use objective='Trace_ELBO', "
                "'TraceMeanField_ELBO' or 'FreeBits', or leave the request (config_enumerate) out"
            )

    def layout(self, structure: Structure, layout: str) -> str:
        """The layout to use for several particles, given the pair's own choice."""
        return layout

    @abstractmethod
    def estimate(self, terms: SiteTerms, structure: Structure, kl_weight: Tensor) -> Estimate:
        """The loss and its parts from the terms of one batch; those of an objective that
        ``enumerates`` are weighted (`SiteTerms.expected`).
        """


class Scaled(Messenger):
    """A factor of these sites' log densities in both programs: of `poutine.scale` too, and 0, which
    that refuses.
    """

    def __init__(self, weights: Mapping[str, float | Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = msg["scale"] * self.weights.get(msg["name"], 1.0)


class Loss(nn.Module):
    """The loss module of an objective and a pair: −bound of one batch, in nats summed over it.

    ``kl_weight`` is a 0-dim buffer: change it in place. ``site_weights`` are further factors of it
    by latent site. ``rounded``: training steps have bfloat16 products.

    Args:
        objective: what is maximised.
        pair: the two programs, a `Pair`.
    """

    kl_weight: Tensor

    def __init__(self, objective: Objective, pair: Pair) -> None:
        super().__init__()
        self.objective, self.pair = objective, pair
        for program in (pair.model, pair.guide):
            if program.owner is not None:
                setattr(self, program.role, program.owner)
        self.register_buffer("kl_weight", torch.ones(()), persistent=False)
        self.site_weights: Mapping[str, float] = {}
        self.rounded = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch: x, ``(B, *event_shape)``, then the named fields as the programs'
        signatures name them.
        """
        return self.measure(*batch_of(self.pair, args, kwargs)).loss

    def measure(self, x: Tensor, fields: Fields) -> Estimate:
        """The loss, with the reconstruction and the KL of the same draws, in the modules' present
        mode.
        """
        with self.pair.active():
            return self.step(x, fields)

    def step(self, x: Tensor, fields: Fields) -> Estimate:
        """`measure` for a caller that has made the pair active: the training loop."""
        with Scaled(self.site_weights) if self.site_weights else nullcontext():
            return self.objective.run(self.pair, x, fields, self.kl_weight)


def times(scale: float | Tensor, value: Tensor) -> Tensor:
    """scale · value; the product is left out at scale 1, as in Pyro."""
    return value if isinstance(scale, float) and scale == 1.0 else value * scale


def scaled_sum(log_prob: Tensor, scale: float | Tensor) -> Tensor:
    """Σ scale · log_prob."""
    return times(scale, log_prob).sum()


def reconstruction(terms: SiteTerms) -> Tensor:
    """Σ log p(x | z) over images, mean over particles, without its graph."""
    total: Any = sum(site.log_prob.sum() for site in terms.observed.values())
    return total.detach() / terms.num_particles


def sampled_kl(terms: SiteTerms) -> Tensor:
    """Σ log q(z | x) − log p(z) over latents and images, mean over particles, without its graph."""
    none = reconstruction(terms).new_zeros(())
    total = sum((site.log_prob.sum() for site in terms.guide.values()), none) - sum(
        (site.log_prob.sum() for site in terms.prior.values()), none
    )
    return total.detach() / terms.num_particles


def refuse_no_path(objective: Objective, structure: Structure, instead: str) -> None:
    """A ``UserError`` where a draw is not reparameterised and the objective's gradients are
    pathwise alone.
    """
    if structure.score_function:
        site = structure.score_function[0]
        raise UserError(
            f"{type(objective).__name__} needs reparameterised draws, but site {site!r} of the "
            f"guide has none (its distribution has no rsample): use objective={instead}, with "
            "score-function gradients"
        )
