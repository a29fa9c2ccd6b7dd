"""Amortization and approximation gap, by refining the variational parameters of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.ambient import turn
from pyro_vae.data.batches import Batch, Resident
from pyro_vae.errors import UserError
from pyro_vae.evaluation.estimate import Estimate, difference, over_images
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.evaluation.observed import refuse_other_data
from pyro_vae.evaluation.refined_guide import RefinedGuide, local_parameters
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.evaluation.setup import Setup
from pyro_vae.evaluation.tiling import even_tiles
from pyro_vae.fields import as_fields
from pyro_vae.formatting import figure, quantity, standard_error
from pyro_vae.objectives import Loss, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.progress import progress_bar
from pyro_vae.rng import mix, own_randomness
from pyro_vae.tensors import as_images
from pyro_vae.training.select_step import select_step
from pyro_vae.training.train_step import TrainStep
from pyro_vae.training.updates import Health, Update
from pyro_vae.validation import check_count

BETAS = (0.9, 0.95)
"""Of Adam: it must soon forget the gradients far from the optimum, which are larger by orders of
magnitude.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Refinement(Estimate):
    """The two parts of log p(x) − ELBO, in nats, for each of N images.

    q* is the best member of the guide's family for each image, as far as Adam found it.

    Attributes:
        guide: q*, an ordinary guide for these images; None where the result was read from a file.
        elbo_amortized_px: ELBO[q], ``(N,)``, float64.
        elbo_refined_px: ELBO[q*], ``(N,)``, from fresh draws.
        log_px: the estimate of log p(x), ``(N,)``.
        log_marginal: that estimate with its errors and warnings, a `LogMarginal`.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *("log_px", "elbo_amortized_px", "elbo_refined_px"),
        *("approximation_gap_px", "amortization_gap_px"),
    )
    figures: ClassVar[tuple[str, ...]] = (
        *("elbo_amortized", "se_elbo_amortized", "elbo_refined", "se_elbo_refined"),
        *("approximation_gap", "se_approximation_gap", "amortization_gap", "se_amortization_gap"),
        *("log_px", "num_images", "protocol", "warnings"),
    )
    hidden: ClassVar[tuple[str, ...]] = ("log_px", "num_images")

    guide: RefinedGuide | None = None  # q*, for these very images; no file has it
    elbo_amortized_px: Tensor  # (N,) float64, ELBO[q]
    elbo_refined_px: Tensor  # (N,) ELBO[q*], from fresh draws
    log_px: Tensor  # (N,) log p̂(x)
    log_marginal: LogMarginal  # of q* by importance sampling: its protocol, errors and warnings

    elbo_amortized = over_images("elbo_amortized_px", "Mean ELBO[q].")
    elbo_refined = over_images("elbo_refined_px", "Mean ELBO[q*].")
    se_elbo_amortized = over_images("elbo_amortized_px", number=standard_error)
    se_elbo_refined = over_images("elbo_refined_px", number=standard_error)

    approximation_gap_px = difference(
        "log_px",
        "elbo_refined_px",
        "log p(x) − ELBO[q*], ``(N,)``, nats, the cost of the family; a lower bound, as log p(x) is.",
    )
    amortization_gap_px = difference(
        "elbo_refined_px",
        "elbo_amortized_px",
        "ELBO[q*] − ELBO[q], ``(N,)``, nats, the cost of using one network for all images.",
    )
    approximation_gap = over_images(
        "approximation_gap_px", "At least this much is lost by the family of q."
    )
    amortization_gap = over_images("amortization_gap_px", "What is lost by the network.")
    se_approximation_gap = over_images("approximation_gap_px", number=standard_error)
    se_amortization_gap = over_images("amortization_gap_px", number=standard_error)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the estimate of log p(x)."""
        return self.log_marginal.warnings

    def headline(self) -> list[str]:
        """Both ELBOs, log p(x), and the gaps between them."""
        line = f"ELBO[q] {figure(self.elbo_amortized)} → ELBO[q*] {figure(self.elbo_refined)} → "
        line += f"{quantity(self.protocol)} ≥ {figure(float(self.log_px.mean()))} nats "
        line += f"(N = {self.num_images}, {self.protocol['log_px']})"
        gaps = f"  amortization gap {figure(self.amortization_gap, 3)} "
        gaps += f"±{self.se_amortization_gap:.3f}   approximation gap ≥ "
        gaps += f"{figure(self.approximation_gap, 3)} ±{self.se_approximation_gap:.3f}"
        return [line, gaps]


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
    """Measure the amortization gap: maximise each image's ELBO over its own variational parameters
    η.

    Adam starts at η = local(x), what the network gives. All other parameters of model and guide are
    unchanged. Then q and the refined q* are scored with fresh draws. log p(x) − ELBO[q] is split
    into the approximation gap, log p(x) − ELBO[q*], and the amortization gap, ELBO[q*] − ELBO[q].

    Args:
        model, guide: Pyro programs, as `fit` takes them. The guide has ``local`` and ``build``.
        x: images ``(N, *event_shape)``, exactly as they are to be scored.
        num_steps: steps of Adam.
        learning_rate: that of Adam at the start; it falls to 0 by a cosine.
        num_samples: K of the evaluations of q and of q*.
        num_particles: draws for each image in each step.
        reference: an estimate of log p(x) of the same images, such as one of `ais`; by default
            importance sampling from q*.
        protocol: what you know of the data; it is printed with the number.
        seed: seed of the draws.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        compile: ``auto`` and ``graph`` (a traced graph), ``inductor``, or ``off``.
        progress: whether to show a progress bar on stderr.
        **fields: as in `log_marginal`.

    Returns:
        A `Refinement`: both gaps of each image in nats, and ``guide``, q* as an ordinary guide for
        these images: ``log_marginal(model, result.guide, x)`` draws from q*.

    Raises:
        UserError: the guide has no ``local`` and ``build``, or its draws are not reparameterised;
            the reference is of other images.

    Reference:
        Cremer, Li and Duvenaud 2018, "Inference Suboptimality in Variational Autoencoders".
    """
    steps: dict[str, Any] = {
        "num_steps": num_steps,
        "learning_rate": learning_rate,
        "num_particles": num_particles,
    }
    for name, count in (*steps.items(), ("num_samples", num_samples)):
        if name != "learning_rate":
            check_count(name, count)
    setup, images = Setup(model, guide, seed, device, progress), as_images(x, missing=True)
    options = {"num_samples": num_samples, "device": device, "compile": compile, **fields}
    tile = even_tiles(len(images), num_particles, setup.rows)
    resident = setup.pair.cast(images.to(setup.place)), as_fields(fields, len(images))
    batches = list(Resident(*resident, tile, setup.place).in_order())

    def evaluated(q: RefinedGuide, stream: int) -> LogMarginal:
        return log_marginal(model, q, images, seed=mix(seed, stream) % 2**32, **options)

    with setup.pair.active(training=False, may_create=False):
        starts = [local_parameters(guide, *batch)[1] for batch in batches]
    amortized = evaluated(_freed(model, guide, starts, batches), 1)
    if reference is not None:
        refuse_other_data("reference", reference.protocol, "refine", amortized.protocol)
    etas, total = list[Tensor](), num_steps * len(batches)
    with turn(), torch.enable_grad(), progress_bar(total, "step", progress) as bar:
        for i, (batch, start) in enumerate(zip(batches, starts, strict=True)):
            freed, own = _freed(model, guide, [start], [batch]), mix(seed, 0, tile * i) % 2**32
            with own_randomness(own, setup.place):
                _climb(setup, Pair.of(model, freed), freed.eta, batch, compile, bar, **steps)
            etas.append(freed.eta.detach())
    refined = _freed(model, guide, etas, batches)
    best = evaluated(refined, 2)
    given = best if reference is None else reference
    names = "num_images", "num_samples", "precision", "quantity", "sha256", "scored", "conditions"
    said = {
        "log_px": str(given.protocol.get("estimator", "as given")),
        **{name: best.protocol[name] for name in names},
        "checked": best.protocol["checked"],
        **steps,
        "seed": seed,
        **(dict(protocol) if protocol else {"data": "as given"}),
    }
    return Refinement(
        guide=refined,
        elbo_amortized_px=amortized.elbo_px,
        elbo_refined_px=best.elbo_px,
        log_px=given.log_px,
        log_marginal=best,
        protocol=said,
    )


def _freed(
    model: Callable[..., Any], guide: Any, etas: list[Tensor], batches: list[Batch]
) -> RefinedGuide:
    """The guide with these η for these images, and the parameters that ``pyro.param`` statements
    made for model and guide.
    """
    freed = RefinedGuide(guide, torch.cat(etas), torch.cat([x for x, _ in batches]))
    old, new = Pair.of(model, guide).store, Pair.of(model, freed).store
    new.parameters.update(old.parameters)
    new.constraints.update(old.constraints)
    return freed


def _climb(
    setup: Setup,
    pair: Pair,
    eta: nn.Parameter,
    batch: Batch,
    compile: str,
    bar: Any,
    num_steps: int,
    learning_rate: float,
    num_particles: int,
) -> None:
    """Adam on the η of one tile of images, in place."""
    x, fields = batch
    # rows of this tile's own table
    fields = {**fields, "index": torch.arange(len(x), device=x.device)}
    loss = Loss(TraceMeanField_ELBO(num_particles=num_particles), pair)
    with pair.active(training=False, may_create=False):
        if foreign := pair.structure(x, fields).not_reparameterized:
            raise UserError(
                f"refine needs reparameterised draws, but site {foreign[0]!r} of the guide has "
                "none (its distribution has no rsample): use a guide that has them"
            )
        optim = torch.optim.Adam([eta], lr=learning_rate, betas=BETAS, fused=True)
        update = Update(optim, [eta], Health.on(x.device))
        eager = TrainStep(loss, [eta], update)
        _check_used(eager, x, fields)
        # one step's worth of work is never compiled for: `auto` is the replayed graph, or eager Pyro
        worth = 1 if compile == "auto" else num_steps
        source: Any = Resident(x, fields, len(x), x.device)
        step, source, how = select_step(eager, compile, worth, source)
        batch = source.everything()
        setup.say(f"refinement step: {how}")
        for i in range(num_steps):
            update.set_rate((1 + cos(pi * i / num_steps)) / 2)
            step(*batch)
            bar.update()


def _check_used(eager: TrainStep, x: Tensor, fields: dict[str, Tensor]) -> None:
    _, gradients = eager.gradients(x, fields)
    gradient = gradients[0] if gradients is not None else None
    if gradient is None or not bool((gradient != 0).any()):
        raise UserError(
            "the guide's draws don't depend on η: its forward must call self.local(x), give "
            "the result to self.build, and sample from that"
        )
