"""log p(x) by annealed importance sampling from the guide, with HMC (Neal 2001; Wu et al. 2017)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import ambient
from pyro_vae.data.loaders import make_source, refuse_repeats
from pyro_vae.devices import find_device
from pyro_vae.evaluation.annealing import Annealed, Settings, anneal, prepare_kernel, tiles
from pyro_vae.evaluation.hmc import Kernel
from pyro_vae.evaluation.importance import mode_notes, refuse_nan, running
from pyro_vae.evaluation.protocol import Quantity
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.evaluation.tiling import padded, rows_of, stops, tiled
from pyro_vae.evaluation.traced_target import make_target
from pyro_vae.evaluation.unconstrained import Point, Unconstrained
from pyro_vae.evaluation.weight_sums import WeightSums
from pyro_vae.formatting import figure, protocol_line, quantity
from pyro_vae.pair import dry_run
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.progress import progress_bar
from pyro_vae.rng import check_seed
from pyro_vae.training.oracle import check_scores

LOW_ACCEPTANCE = 0.2


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnealedMarginal(LogMarginal):
    """An estimate of log p(x) by AIS: weights, errors and bias as of importance sampling, a chain
    being a draw.

    ``elbo_px`` is the guide's own ELBO, from the chains' first draws. k̂ needs some 25 chains, and
    is NaN below.
    """

    acceptance: Tensor  # (N,) mean acceptance of HMC's proposals along the path
    step_size: Tensor  # (N,) in units of the guide's standard deviation

    @property
    def warnings(self) -> tuple[str, ...]:
        """What changes how the number is to be read."""
        found = list(super().warnings)
        if self.num_samples == 1:
            found = [
                text for text in found if not text.startswith("one draw an image: this is the ELBO")
            ]
            found.append(
                "one chain an image: no Monte Carlo error or bias estimate; use more chains"
            )
        poor = float((self.acceptance < LOW_ACCEPTANCE).double().mean())
        if poor > 0.01:
            found.append(
                f"HMC accepts less than {LOW_ACCEPTANCE:.0%} in {poor:.1%} of the images: the "
                "chains hardly move there; use more steps of the schedule, or a guide nearer to "
                "the posterior"
            )
        return tuple(found)

    def __str__(self) -> str:
        said = self.protocol
        line = f"{quantity(said)} ≥ {figure(self.mean)} nats (AIS, T = {said['num_steps']}, {self.num_samples} chains, "
        line += f"N = {self.num_images})  MC ±{self.se_mc:.3f}  test set ±{self.se_total:.2f}  "
        line += f"est. bias {figure(self.bias, 3)}  median ESS {float(self.ess.median()):.1f}  "
        line += f"acceptance {float(self.acceptance.mean()):.2f}  ELBO {figure(self.elbo)}"
        if self.bits_per_dim is not None:
            line += f"  bits/dim {self.bits_per_dim:.3f}"
        hidden = ("estimator", "num_samples", "num_chains", "num_images", "num_dims", "num_steps")
        lines = [
            line,
            "  a lower bound in expectation; real data have no such upper bound (bdmc: both, on "
            "simulated data)",
        ]
        return "\n".join(
            [
                *lines,
                protocol_line(said, *hidden),
                *(f"  warning: {text}" for text in self.warnings),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures under their attributes' names, with the mean acceptance."""
        return {**super().to_dict(), "acceptance": float(self.acceptance.mean())}


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
    **fields: Any,
) -> AnnealedMarginal:
    """Estimate log p(x) of each image along the path q(z | x)^(1−β) p(x, z)^β, β from 0 to 1 in T =
    ``num_steps``.

    The chains start at the guide's draws and move by HMC in unconstrained space. Step sizes (one an
    image) are found in a pilot run and frozen, so that E[ŵ] = p(x) holds exactly for the run that
    counts. Tiles of images bound the memory.

    Args:
        x: images ``(N, *event_shape)`` exactly as they are to be scored: binarized or dequantized
            already.
        num_chains: C, independent chains an image; their weights are averaged.
        num_leapfrog: L, gradients an HMC step.
        schedule: ``sigmoid`` (slow at both ends) or ``linear``.
        compile: ``auto`` and ``graph`` (the traced graph, replayed), ``inductor``, or ``off``.

    Raises:
        UserError: where the pair has no such path, in one sentence (`Unconstrained` lists the
            reasons).
    """
    settings = Settings(num_steps, num_chains, num_leapfrog, schedule, target_acceptance)
    settings.check()
    check_seed(seed)
    place = find_device(device)
    pair = Pair.of(model, guide).to(place)
    refuse_repeats(x)
    source = make_source(x, fields, 1, place)
    source.batch_size = tile = tiles(source.num_images, num_chains, rows_of(pair, place))
    scored, found = Quantity(pair), _Figures(num_chains, place)
    notes = mode_notes(pair)
    total = num_steps * -(-source.num_images // tile)
    with (
        running(pair, place),
        progress_bar(total, "step", progress) as bar,
    ):
        first = next(source.in_order())
        checked, doubts = check_scores(pair, pair.cast(first[0]), first[1])
        tiles_of_images = [padded(*batch, tile, pair) for batch in (first, source.drawn(seed))]
        space = Unconstrained(pair, *tiles_of_images[0], num_chains)
        target, how = make_target(space, compile, *tiles_of_images)
        if progress:
            tqdm.write(f"annealing: {how}", file=sys.stderr)
        torch.manual_seed(seed)
        for _, images, named in tiled(source, tile, False):
            dry_run.check_all_support(pair, pair.cast(images), named)
            scored.see((images, named))
            batch = padded(images, named, tile, pair)
            on_tile = target.tile(*batch)
            kernel = prepare_kernel(target, on_tile, *batch, settings)
            start = on_tile.point(target.space.draw(*batch))
            found.add(
                anneal(on_tile, start, settings.betas(), kernel, bar.update),
                start,
                kernel,
                len(images),
            )
        known, said_of_it = scored.told(bits_offset)
        said_of_it += source.counted(scored.num_images)
    said = {
        "num_images": scored.num_images,
        "precision": str(pair.cast(images).dtype).removeprefix("torch."),
        **ambient.said(place),
        "seed": seed,
        **known,
        "checked": checked,
    }
    return found.result(
        settings, said, protocol, notes=notes + said_of_it + doubts, bits_offset=bits_offset
    )


class _Figures:
    """The figures of each tile of images, gathered."""

    def __init__(self, num_chains: int, device: torch.device) -> None:
        self.num_chains, self.device = num_chains, device
        self.curve = dict.fromkeys(stops(num_chains), 0.0)
        self._columns: list[Tensor] = []

    def add(self, run: Annealed, start: Point, kernel: Kernel, num_images: int) -> None:
        """A tile; rows that only fill it are dropped."""
        sums = WeightSums(num_images, self.num_chains, self.device)
        for stop in self.curve:
            sums.add(run.log_weights[sums.seen : stop, :num_images])
            self.curve[stop] += float(sums.log_mean().sum())
        scored = sums.finish()
        elbo = (start.log_p.double() - start.log_q.double()).mean(0)
        ours = torch.stack((elbo, run.acceptance.double(), kernel.step.double()))[:, :num_images]
        self._columns.append(torch.cat((scored.columns(), ours.cpu())))

    def result(
        self,
        settings: Settings,
        said: dict[str, Any],
        protocol: Mapping[str, Any] | None,
        **others: Any,
    ) -> AnnealedMarginal:
        """All images, with the protocol: how it was estimated, and what the caller knows."""
        log_px, _, variance, ess, share, debiased, khat, elbo, acceptance, step = torch.cat(
            self._columns, dim=1
        )
        refuse_nan(log_px)
        return AnnealedMarginal(
            log_px=log_px,
            se=variance.sqrt(),
            ess=ess,
            khat=khat,
            elbo_px=elbo,
            max_weight_share=share,
            debiased_px=debiased,
            curve={k: v / len(log_px) for k, v in self.curve.items()},
            num_samples=self.num_chains,
            acceptance=acceptance,
            step_size=step,
            protocol={
                "estimator": f"AIS-{settings.num_steps}",
                "num_samples": self.num_chains,
                "proposal": "guide",
                **said,
                **settings.said(),
                **(dict(protocol) if protocol else {"data": "as given"}),
            },
            **others,
        )
