"""Importance sampling: ``log_marginal``, with two error bars, a bias estimate and diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, cycle
from typing import Any

import torch
from torch import Tensor

from pyro_vae import distributed
from pyro_vae.ambient import exact
from pyro_vae.choices import registry
from pyro_vae.data.batches import Batch, Resident
from pyro_vae.evaluation.precision import (
    FLOAT32,
    IMAGES,
    Precision,
    error_in_words,
    find_precision,
)
from pyro_vae.evaluation.proposals import Proposal
from pyro_vae.evaluation.result import EXACT, LogMarginal
from pyro_vae.evaluation.scorer import Scorer
from pyro_vae.evaluation.setup import Setup
from pyro_vae.evaluation.tiling import tile_sizes, tiled
from pyro_vae.evaluation.weight_sums import Gathered
from pyro_vae.pair.nodes import taken
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.rng import permutation
from pyro_vae.validation import check_count


@takes_fields
def log_marginal(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    num_samples: int = 5000,
    proposal: str | Proposal = "guide",
    precision: str = "float32",
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = False,
    bits_offset: float | None = None,
    ignore_scales: bool = False,
    **fields: Any,
) -> LogMarginal:
    """Estimate log p(x) of each image by importance sampling with K = ``num_samples`` draws.

    The estimate of one image is L_K = log (1/K) Σ_k p(x, z_k) / q(z_k | x). Its expectation is at
    most log p(x). The draws stream through sums in float64, so memory does not grow with K. Modules
    run in eval mode, without gradients, and are restored. Where no latent is drawn (there is none,
    or all are summed out) log p(x) is exact, and one run of the model is enough. Under
    torch.distributed every process makes the same call, scores a part of the images, and gets the
    whole result.

    Example::

        ll = pv.log_marginal(model, guide, x, num_samples=200)
        print(ll)  # log p(x) ≥ …, both error bars, the protocol, warnings
        ll.per_image()  # a table: log_px, se, khat, … of each image

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``, exactly as they are to be scored: binarized or dequantized
            already. Or a Dataset or a DataLoader.
        num_samples: K, draws for each image.
        proposal: where the draws come from: ``guide``; ``prior`` (naive Monte Carlo); or
            ``"defensive(scale=2.0, weight=0.2)"``, a mixture of the guide and a wider copy of it,
            which keeps the weights bounded where q is too narrow.
        precision: of matrix products: ``float32``, ``tf32`` or ``bfloat16``. Reduced precision is
            compared with float32 on a few images, and the difference is printed.
        protocol: what you know of the data, such as ``{"data": "mnist"}``; it is printed with the
            number.
        seed: seed of the draws. The noise depends on it and on the image's row, not on batches.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``. The pair is
            moved there.
        compile: ``auto`` and ``graph`` trace the programs once and replay the graph, ``inductor``
            compiles it, ``off`` runs the programs eagerly.
        progress: whether to show a progress bar on stderr.
        bits_offset: for dequantized data, log2 of the number of levels: bits per dimension are then
            reported too.
        ignore_scales: whether to leave out ``poutine.scale``, such as a β that was used in
            training. The result says so.
        **fields: named arguments of the programs, one row for each image. The number is log p(x, y)
            where the model observes y, and log p(x | y) where y only conditions it.

    Returns:
        A `LogMarginal`: the figures of each image in nats, the mean with two error bars, and
        warnings.

    Raises:
        UserError: the number would not be log p(x) of each image; the sentence says why.

    Reference:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", equation 8; for
        the defensive proposal Owen and Zhou 2000.
    """
    check_count("num_samples", num_samples)
    arithmetic, group = find_precision(precision), distributed.current()
    drawn: Proposal = registry.build("proposal", proposal)
    setup = Setup(model, guide, seed, device, progress and group.first, ignore_scales)
    setup.notes += (drawn.warning,) if drawn.warning else ()
    found = Gathered(num_samples)
    with setup.running(), exact(arithmetic.products):
        tile = tile_sizes(num_samples, setup.rows)[1]
        setup.begin(x, fields, lambda _: tile, drawn.check, drawn.draws_from_guide)
        scorer = Scorer(setup, drawn, num_samples, compile, arithmetic)
        setup.say(f"log weights: {scorer.how}")
        in_words = _in_words(setup, scorer, arithmetic)
        mine = cycle(number == group.rank for number in range(group.size))

        def seen(batch: Batch) -> bool:
            setup.see(batch)
            return next(mine)

        for start, images, named in tiled(setup.source, scorer.tile, setup.progress, seen):
            for scored in scorer.score(start, images, named):
                found.add(start, *scored)
        found.gather(group)
        memory = chain.from_iterable(group.gather(scorer.notes))
        how = {
            "estimator": EXACT if scorer.exact else f"IW-{num_samples}",
            "num_samples": num_samples,
            **({} if scorer.exact else {"proposal": drawn.in_words()}),
            "precision": group.once(lambda: in_words),
        }
        said = setup.protocol(how, protocol, bits_offset=bits_offset)
    return LogMarginal(
        **found.figures(),
        num_samples=num_samples,
        protocol=said,
        notes=(*setup.notes, *dict.fromkeys(memory)),
        bits_offset=bits_offset,
    )


def _in_words(setup: Setup, scorer: Scorer, arithmetic: Precision) -> str:
    """The precision, for the protocol; a reduced one with its error against float32, in the same
    noise on a few of the images: random ones, of a stream the first.
    """
    if not arithmetic.reduced:
        return setup.dtype_name
    few, source = taken(*setup.first, slice(IMAGES)), setup.source
    if isinstance(source, Resident):
        rows = permutation(source.num_images, 0)[:IMAGES]
        few = source.take(rows.to(source.x.device))

    def log_px(of: Scorer) -> Tensor:
        return torch.cat([figures["log_px"] for figures, _ in of.score(0, *few)])

    plain = Scorer(setup, scorer.proposal, scorer.num_samples, "graph", FLOAT32)
    with exact(FLOAT32.products):
        own = log_px(plain)
    error = error_in_words(log_px(scorer) - own, scorer.num_samples)
    return f"{arithmetic.words} ({error})"
