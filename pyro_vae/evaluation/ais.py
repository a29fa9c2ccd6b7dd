"""log p(x) by annealed importance sampling from the guide, with HMC (Neal 2001; Wu et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.evaluation.annealing import Settings, annealed_tiles
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.evaluation.setup import Setup
from pyro_vae.evaluation.tiling import stops
from pyro_vae.evaluation.weight_sums import Curve, Figures, Gathered, WeightSums
from pyro_vae.formatting import figure
from pyro_vae.pair.signatures import takes_fields

LOW_ACCEPTANCE = 0.2


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnealedMarginal(LogMarginal):
    """An estimate of log p(x) by AIS, in nats; a chain is a draw.

    ``elbo_px`` is the guide's ELBO, from the chains' first draws. k̂ is NaN below some 25 chains.

    Attributes:
        acceptance: mean acceptance rate of HMC along the path, ``(N,)``.
        step_size: HMC's step size in units of the guide's standard deviation, ``(N,)``.
    """

    columns: ClassVar[tuple[str, ...]] = (*LogMarginal.columns, "acceptance", "step_size")
    figures: ClassVar[tuple[str, ...]] = (*LogMarginal.figures, "acceptance")
    hidden: ClassVar[tuple[str, ...]] = (*LogMarginal.hidden, "num_chains", "num_steps")

    acceptance: Tensor  # (N,) mean acceptance of HMC's proposals along the path
    step_size: Tensor  # (N,) in units of the guide's standard deviation

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the number is to be read."""
        found = super().warnings
        poor = float((self.acceptance < LOW_ACCEPTANCE).double().mean())
        if poor > 0.01:
            found += (
                f"HMC accepts less than {LOW_ACCEPTANCE:.0%} in {poor:.1%} of the images: the "
                "chains hardly move there; use more steps of the schedule, or a guide nearer to "
                "the posterior",
            )
        return found

    def _of_one_draw(self) -> str:
        return (
            "one chain for each image gives no Monte Carlo error and no bias estimate: use "
            "more chains"
        )

    def headline(self) -> list[str]:
        """log p(x) with its two errors, its bias, and what is known of the chains."""
        line = self.number(f"AIS, T = {self.protocol['num_steps']}, {self.num_samples} chains")
        line += f"  est. bias {figure(self.bias, 3)}  median ESS {self.median_ess:.1f}  "
        line += f"acceptance {float(self.acceptance.mean()):.2f}  ELBO {figure(self.elbo)}"
        of_bounds = "real data have no such upper bound (bdmc: both, on simulated data)"
        return [line + self._bits(), f"  a lower bound in expectation; {of_bounds}"]


@takes_fields
def ais(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_steps: int = 1000,
    num_chains: int = 8,
    num_leapfrog: int = 5,
    schedule: str = "sigmoid",
    target_acceptance: float = 0.65,
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = False,
    bits_offset: float | None = None,
    ignore_scales: bool = False,
    **fields: Any,
) -> AnnealedMarginal:
    """Estimate log p(x) of each image by annealed importance sampling (AIS) that starts at the
    guide.

    The path is q(z | x)^(1−β) p(x, z)^β with β from 0 to 1 in T = ``num_steps`` steps. The chains
    start at draws of the guide and move by HMC in unconstrained space. One step size for each image
    is found in a pilot run and then fixed, so that E[ŵ] = p(x) is exact in the run that
    counts.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``, exactly as they are to be scored.
        num_steps: T, steps of the path.
        num_chains: independent chains for each image; their weights are averaged.
        num_leapfrog: gradients in one HMC step.
        schedule: how β rises: ``sigmoid`` (slow at both ends) or ``linear``.
        target_acceptance: the acceptance rate of HMC at which the pilot run aims, in (0, 1).
        protocol: what you know of the data; it is printed with the number.
        seed: seed of the draws.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        compile: ``auto`` and ``graph`` (a traced graph), ``inductor``, or ``off``.
        progress: whether to show a progress bar on stderr.
        bits_offset, ignore_scales: as in `log_marginal`.
        **fields: as in `log_marginal`.

    Returns:
        An estimate with the figures of `LogMarginal`, a chain being a draw, and HMC's acceptance.

    Raises:
        UserError: the pair has no such path (a discrete latent, a guide that scores only its own
            draws, …); the sentence says why.

    Reference:
        Neal 2001, "Annealed Importance Sampling"; Wu et al. 2017, "On the Quantitative Analysis of
        Decoder-Based Generative Models".
    """
    settings = Settings(num_steps, num_chains, num_leapfrog, schedule, target_acceptance)
    setup, found = Setup(model, guide, seed, device, progress, ignore_scales), Gathered(num_chains)
    with setup.running():
        for tile in annealed_tiles(setup, x, fields, settings, compile, runs=1):
            start = tile.draw()
            run = tile.anneal(start, tile.betas)
            rows = slice(tile.num_images)
            figures, curve = _summed(run.log_weights[:, rows])
            figures["elbo_px"] = (start.log_p.double() - start.log_q.double()).mean(0)[rows]
            figures["acceptance"] = run.acceptance[rows]
            figures["step_size"] = tile.kernel.step[rows]
            found.add(tile.start, figures, curve)
        how = {"estimator": f"AIS-{num_steps}", "num_samples": num_chains, "proposal": "guide"}
        said = setup.protocol(how, protocol, settings.said(), bits_offset)
    return AnnealedMarginal(
        **found.figures(),
        num_samples=num_chains,
        protocol=said,
        notes=setup.notes,
        bits_offset=bits_offset,
    )


def _summed(log_weights: Tensor) -> tuple[Figures, Curve]:
    """Of one tile's chains, ``(C, B)``."""
    num_chains, num_images = log_weights.shape
    sums, curve = WeightSums(num_images, num_chains, log_weights.device), {}
    for stop in stops(num_chains):
        sums.add(log_weights[sums.seen : stop])
        curve[stop] = sums.log_mean().sum()
    return sums.finish(), curve
