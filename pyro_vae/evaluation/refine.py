"""What amortization costs: the guide's parameters freed for each image, and the two gaps (Cremer et
al. 2018).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.ambient import turn
from pyro_vae.data.loaders import Resident
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError
from pyro_vae.evaluation.annealing import tiles
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.evaluation.protocol import refuse_other_data
from pyro_vae.evaluation.refined_guide import RefinedGuide, local_parameters
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.evaluation.tiling import rows_of
from pyro_vae.fields import as_fields
from pyro_vae.formatting import figure, protocol_line, quantity
from pyro_vae.objectives import Loss, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.progress import progress_bar
from pyro_vae.rng import check_seed, mix
from pyro_vae.tensors import as_images
from pyro_vae.training.nan_guard import Health
from pyro_vae.training.select_step import select_step
from pyro_vae.training.train_step import TrainStep
from pyro_vae.training.updates import Update
from pyro_vae.validation import check_count

BETAS = (0.9, 0.95)
"""Of Adam: it must soon forget the gradients far from the optimum, which are larger by orders of
magnitude.
"""


@dataclass(frozen=True, eq=False)
class Refinement:
    """The two parts of log p(x) − ELBO, nats per image; q* is the best member of the guide's family
    for each image.
    """

    guide: RefinedGuide  # q*, for these very images
    elbo_amortized_px: Tensor  # (N,) float64, ELBO[q]
    elbo_refined_px: Tensor  # (N,) ELBO[q*], from fresh draws
    log_px: Tensor  # (N,) log p̂(x)
    log_marginal: LogMarginal  # of q* by importance sampling: its protocol, errors and warnings
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.log_px)

    @property
    def elbo_amortized(self) -> float:
        """Mean ELBO[q]."""
        return float(self.elbo_amortized_px.mean())

    @property
    def elbo_refined(self) -> float:
        """Mean ELBO[q*]."""
        return float(self.elbo_refined_px.mean())

    @property
    def approximation_gap(self) -> float:
        """log p̂(x) − ELBO[q*]: what the family can't do. As log p̂ is a lower bound, so is this."""
        return float((self.log_px - self.elbo_refined_px).mean())

    @property
    def amortization_gap(self) -> float:
        """ELBO[q*] − ELBO[q]: what the network doesn't do."""
        return float((self.elbo_refined_px - self.elbo_amortized_px).mean())

    @property
    def se_elbo_amortized(self) -> float:
        """Standard error of ``elbo_amortized``: the images as a sample, Monte Carlo included; NaN
        for one image.
        """
        return _se(self.elbo_amortized_px)

    @property
    def se_elbo_refined(self) -> float:
        """That of ``elbo_refined``."""
        return _se(self.elbo_refined_px)

    @property
    def se_approximation_gap(self) -> float:
        """That of ``approximation_gap``, paired by image."""
        return _se(self.log_px - self.elbo_refined_px)

    @property
    def se_amortization_gap(self) -> float:
        """That of ``amortization_gap``, paired by image."""
        return _se(self.elbo_refined_px - self.elbo_amortized_px)

    def __str__(self) -> str:
        line = f"ELBO[q] {figure(self.elbo_amortized)} → ELBO[q*] {figure(self.elbo_refined)} → {quantity(self.protocol)} ≥ "
        line += f"{figure(float(self.log_px.mean()))} nats (N = {self.num_images}, {self.protocol['log_px']})"
        gaps = f"  amortization gap {figure(self.amortization_gap, 3)} ±{self.se_amortization_gap:.3f}   approximation gap ≥ "
        gaps += f"{figure(self.approximation_gap, 3)} ±{self.se_approximation_gap:.3f}"
        rest = protocol_line(self.protocol, "log_px", "num_images")
        return "\n".join(
            [line, gaps, rest, *(f"  warning: {text}" for text in self.log_marginal.warnings)]
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names."""
        names = ("elbo_amortized", "elbo_refined", "approximation_gap", "amortization_gap")
        figures = {key: getattr(self, key) for name in names for key in (name, f"se_{name}")}
        figures |= {"log_px": float(self.log_px.mean()), "num_images": self.num_images}
        return {**figures, "protocol": self.protocol, "warnings": list(self.log_marginal.warnings)}


@takes_fields
def refine(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_steps: int = 500,
    learning_rate: float = 0.1,
    num_samples: int = 5000,
    num_particles: int = 8,
    reference: LogMarginal | None = None,
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = False,
    **fields: Any,
) -> Refinement:
    """Maximise each image's ELBO over its own η, from η = local(x), by Adam; then evaluate q and q*
    with fresh draws.

    All other parameters of model and guide stay as they are. ``result.guide`` is an ordinary guide
    for these images alone: ``log_marginal(model, result.guide, x)`` has the weights of q*.

    Args:
        x: the images themselves ``(N, *event_shape)``, binarized already.
        learning_rate: of Adam, falling to 0 by a cosine.
        num_samples: K of the evaluations of q and of q*.
        num_particles: draws an image in each step.
        reference: log p̂(x) of the same images from elsewhere (`ais`, say); by default IW-K with
            q*.

    Raises:
        UserError: the guide has no ``local`` and ``build``, or draws that are not reparameterised;
            the reference is of other images.
    """
    for name, count in (
        ("num_steps", num_steps),
        ("num_samples", num_samples),
        ("num_particles", num_particles),
    ):
        check_count(name, count)
    check_seed(seed)
    place = find_device(device)
    images = as_images(x)
    pair = Pair.of(model, guide).to(place)
    seen = pair.cast(images.to(place))
    named = {name: value.to(place) for name, value in as_fields(fields, len(images)).items()}
    named.setdefault("index", torch.arange(len(images), device=place))
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "device": device,
        "compile": compile,
        **fields,
    }
    tile = tiles(len(images), num_particles, rows_of(pair, place))
    starts = range(0, len(images), tile)
    initial = _at_start(model, guide, seen, named, tile, pair)
    amortized = log_marginal(model, initial, images, seed=mix(seed, 1) % 2**32, **options)
    _check_reference(reference, amortized)
    etas = []
    with (
        turn(),
        torch.enable_grad(),
        progress_bar(num_steps * len(starts), "step", progress) as bar,
    ):
        for start in starts:
            rows = slice(start, start + tile)
            batch = seen[rows], {name: value[rows] for name, value in named.items()}
            climb = _Climb(
                num_steps, learning_rate, num_particles, compile, mix(seed, 0, start) % 2**32, bar
            )
            etas.append(climb(model, guide, *batch))
    refined = RefinedGuide(initial.base, torch.cat(etas), seen)
    _share_store(model, guide, refined)
    best = log_marginal(model, refined, images, seed=mix(seed, 2) % 2**32, **options)
    said = {
        "log_px": _label(best if reference is None else reference),
        **{name: best.protocol[name] for name in ("num_images", "num_samples", "precision")},
        **{name: best.protocol[name] for name in ("quantity", "sha256", "scored", "conditions")},
        **{
            "num_steps": num_steps,
            "learning_rate": learning_rate,
            "num_particles": num_particles,
            "seed": seed,
        },
        **(dict(protocol) if protocol else {"data": "as given"}),
    }
    log_px = best.log_px if reference is None else reference.log_px
    return Refinement(refined, amortized.elbo_px, best.elbo_px, log_px, best, said)


def _at_start(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    fields: dict[str, Tensor],
    tile: int,
    pair: Pair,
) -> RefinedGuide:
    """The guide with the η at which each image begins: its own, for an amortized guide."""
    etas = []
    with pair.active(training=False, may_create=False):
        for start in range(0, len(x), tile):
            rows = slice(start, start + tile)
            base, eta = local_parameters(
                guide, x[rows], {name: value[rows] for name, value in fields.items()}
            )
            etas.append(eta)
    initial = RefinedGuide(base, torch.cat(etas), x)
    _share_store(model, guide, initial)
    return initial


@dataclass(frozen=True)
class _Climb:
    """Adam on the η of one tile of images."""

    num_steps: int
    learning_rate: float
    num_particles: int
    compile: str
    seed: int
    bar: Any

    def __call__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Tensor,
        fields: dict[str, Tensor],
    ) -> Tensor:
        """η*, ``(B, P)``."""
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            with Pair.of(model, guide).active(training=False, may_create=False):
                base, eta = local_parameters(guide, x, fields)
            freed = RefinedGuide(base, eta, x)
            _share_store(model, guide, freed)
            loss = Loss(
                TraceMeanField_ELBO(num_particles=self.num_particles), Pair.of(model, freed)
            )
            # rows of this tile's own table
            named = {**fields, "index": torch.arange(len(x), device=x.device)}
            with loss.pair.active(training=False, may_create=False):
                self._run(loss, freed, x, named)
        return freed.eta.detach()

    def _run(self, loss: Loss, freed: RefinedGuide, x: Tensor, fields: dict[str, Tensor]) -> None:
        if foreign := loss.pair.structure(x, fields).not_reparameterized:
            raise UserError(
                f"refine climbs along pathwise gradients, and site {foreign[0]!r} of the guide "
                "has none (its distribution has no rsample): use a family that is reparameterised"
            )
        optim = torch.optim.Adam([freed.eta], lr=self.learning_rate, betas=BETAS, fused=True)
        update, source = (
            Update(optim, [freed.eta], Health.on(x.device)),
            Resident(x, fields, len(x), x.device),
        )
        eager = TrainStep(loss, [freed.eta], update)
        _check_used(eager, x, fields)
        # one step's worth of work is never compiled for: `auto` is the replayed graph, or eager
        # Pyro
        step, _, how = select_step(
            eager, self.compile, 1 if self.compile == "auto" else self.num_steps, source
        )
        if not self.bar.disable:
            tqdm.write(f"refinement step: {how}", file=sys.stderr)
        for i in range(self.num_steps):
            update.set_rate((1 + cos(pi * i / self.num_steps)) / 2)
            step(x, fields)
            self.bar.update()


def _check_used(eager: TrainStep, x: Tensor, fields: dict[str, Tensor]) -> None:
    _, gradients = eager.gradients(x, fields)
    gradient = gradients[0] if gradients is not None else None
    if gradient is None or not bool((gradient != 0).any()):
        raise UserError(
            "the guide's draws don't depend on η: let its forward call self.local(x) and sample "
            "from self.build of what that gives"
        )


def _share_store(
    model: Callable[..., Any], guide: Callable[..., Any], refined: RefinedGuide
) -> None:
    """The parameters that ``pyro.param`` statements made for model and guide, for model and refined
    guide too.
    """
    old, new = Pair.of(model, guide).store, Pair.of(model, refined).store
    new.parameters.update(old.parameters)
    new.constraints.update(old.constraints)


def _check_reference(reference: LogMarginal | None, own: LogMarginal) -> None:
    if reference is None:
        return
    if reference.protocol.get("sha256") != own.protocol["sha256"]:
        raise UserError(
            "reference is an estimate of log p(x) for other images than x (their SHA-256 differ): "
            "estimate it on this very tensor"
        )
    refuse_other_data("reference", reference.protocol, "refine", own.protocol)


def _label(result: LogMarginal) -> str:
    return str(result.protocol.get("estimator", "as given"))


def _se(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
