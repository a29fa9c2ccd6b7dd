"""Imputation and denoising: draws of images given what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.encode import visit_images
from pyro_vae.analysis.generate import sample
from pyro_vae.analysis.gibbs import Chains, Redraw, Restored
from pyro_vae.analysis.latents import ROWS, whole_images
from pyro_vae.errors import UserError
from pyro_vae.fields import as_fields
from pyro_vae.pair.log_weights import refuse_own_draws, refuse_unscorable
from pyro_vae.pair.nodes import Fields, repeated
from pyro_vae.pair.program import validation
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.rng import check_seed, mix
from pyro_vae.tensors import as_images, as_mask, as_tensor
from pyro_vae.validation import check_choice, check_count


@takes_fields
def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    missing: Any = None,
    num_samples: int = 16,
    num_steps: int = 200,
    method: str = "metropolis",
    seed: int = 0,
    device: str | torch.device = "auto",
    **fields: Any,
) -> Restored:
    """Draw missing pixels given the observed ones: x_mis ~ p(x_mis | x_obs), by
    Metropolis-within-Gibbs.

    K = ``num_samples`` chains run at each image. A step proposes z' ~ q(z | x) with x completed by
    the present x_mis, then a shift of z by the difference of two more such draws; it accepts or
    rejects each, and then draws x_mis ~ p(x_mis | z). With this test (``metropolis``) the chains
    converge to p(x_mis | x_obs) for every guide. Without it (``gibbs``) they do so only if the
    guide is the model's posterior. Missing pixels start at a draw of p(x).

    Example::

        missing = torch.rand_like(x) < 0.5
        found = pv.impute(model, guide, x, missing, num_steps=20)
        found.mean, found.sd, found.se  # E[x | seen pixels], each (N, *event_shape)

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``. Values of missing pixels are not read, and may be NaN.
        missing: bool, True where a pixel is missing, of x's shape or one that broadcasts to it; by
            default where x is NaN, or where the field ``mask`` is False.
        num_samples: K, chains for each image.
        num_steps: steps of each chain; averages leave out the first half.
        method: ``metropolis`` or ``gibbs``.
        seed: seed of the chains.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        `Restored`: the chains' last states ``samples``, ``(K, N, *event_shape)``; ``mean``, ``sd``
        and ``se`` (its Monte Carlo error), each ``(N, *event_shape)``; the acceptance rates.

    Raises:
        UserError: a mask of another type or shape; a pair for which there is no such chain, such as
            one without a latent, or whose pixels depend on each other given z.

    Reference:
        Mattei and Frellsen 2018, "Leveraging the Exact Likelihood of Deep Latent Variable Models",
        section 3.3; for ``gibbs`` Rezende et al. 2014, appendix F.
    """
    seen, unseen = _pixels(x, missing)

    def start(drawn: Callable[[int], Tensor]) -> Tensor:
        images = drawn(0)
        return torch.where(unseen, images, seen.to(images))

    def redraw(unseen: Tensor, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        return torch.where(unseen, draw(), x)

    chains = num_samples, num_steps, method, seed, device
    return restore(model, guide, unseen, start, redraw, fields, *chains)


def _pixels(x: Any, missing: Any) -> tuple[Tensor, Tensor]:
    """The images, zeros where a pixel is missing, and where that is."""
    images = as_tensor(x, "x")
    mask = images.isnan() if missing is None else as_mask(missing, images, "missing")
    return as_images(images.masked_fill(mask, 0)).cpu(), mask.cpu()


Noise = Callable[[Tensor], Any]
"""From clean images to the law of the noisy ones, p(y | x), pixel by pixel: ``lambda x:
dist.Normal(x, 0.3)``.
"""

CANDIDATES = 20
"""Draws of p(x) of which each pixel starts at the most likely, where y itself is no value of x."""
PIXEL_MOVES = 5
"""Metropolis moves of the pixels for each of z: they cost no network."""


@takes_fields
def denoise(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    noisy: Any,
    noise: Noise,
    num_samples: int = 16,
    num_steps: int = 200,
    method: str = "metropolis",
    seed: int = 0,
    device: str | torch.device = "auto",
    **fields: Any,
) -> Restored:
    """Draw clean images given noisy ones, x ~ p(x | y) for a known noise p(y | x), by
    Metropolis-within-Gibbs.

    K = ``num_samples`` chains run at each image. x itself is drawn along with z, and the guide
    never sees y. A step moves z as `impute` does. Then each pixel proposes x'_d ~ p(x_d | z),
    accepted with probability min(1, p(y_d | x'_d) / p(y_d | x_d)). The chains converge to p(x | y)
    for every guide and every noise; with ``gibbs``, which leaves out the test of z', only if the
    guide is the model's posterior. Noise that is narrow compared with p(x | z) needs more steps.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        noisy: y, images ``(N, *event_shape)``. They may have values that x can't have.
        noise: a function from x to p(y | x), a distribution whose log_prob has one number for each
            pixel (no ``to_event``): ``lambda x: dist.Normal(x, 0.3)``.
        num_samples: K, chains for each image.
        num_steps: steps of each chain; averages leave out the first half.
        method: ``metropolis`` or ``gibbs``.
        seed: seed of the chains.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or a ``torch.device``.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        `Restored`, as of `impute`; ``mean`` is E[x | y].

    Raises:
        UserError: a noise of another shape, or one that can't have made y; a pair for which there
            is no such chain, as in `impute`.

    Reference:
        Mattei and Frellsen 2018, section 3.3, for the moves of z.
    """
    if not callable(noise):
        raise UserError(
            f"noise is a {type(noise).__name__}: expected a function of x, such as lambda x: "
            "dist.Normal(x, 0.3)"
        )
    y = as_images(noisy, "noisy").cpu()

    first, chains = partial(_likeliest, noise, y), (num_samples, num_steps, method, seed, device)
    return restore(model, guide, y, first, partial(_moved, noise), fields, *chains)


def _log_noise(noise: Noise, y: Tensor, x: Tensor) -> Tensor:
    """log p(y_d | x_d), nats, of x's shape; −inf where y is no value of the noise at x."""
    with validation(distributions=False):  # y may be outside a support that moves with x
        law = noise(x)
        found = law.log_prob(y)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"noise(x).log_prob(y) has shape {shape} for images {tuple(x.shape)}: expected one "
            "number for each pixel, such as dist.Normal(x, 0.3) gives without to_event"
        )
    return torch.where(law.support.check(y) & ~found.isnan(), found, -torch.inf)


def _likeliest(noise: Noise, y: Tensor, drawn: Callable[[int], Tensor]) -> Tensor:
    """Each pixel at the likeliest of some draws from the prior."""
    start = drawn(0)
    own = y.to(start) if y.is_floating_point() else y
    best = _log_noise(noise, own, start)
    for candidate in range(1, CANDIDATES):
        images = drawn(candidate)
        found = _log_noise(noise, own, images)
        start, best = torch.where(found > best, images, start), torch.maximum(found, best)
    if bool((never := (best == -torch.inf).all(0)).any()):
        image, *pixel = never.nonzero()[0].tolist()
        raise UserError(
            f"y, image {image}, pixel {tuple(pixel)}: {float(y[(image, *pixel)]):g} has no "
            f"density under noise(x) at any of the {CANDIDATES * len(best)} values of x that "
            "the model drew there: check that noise is the noise of y"
        )
    return start


def _moved(noise: Noise, y: Tensor, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
    """Some Metropolis moves of every pixel, each with p(x_d | z) as its proposal."""
    here = _log_noise(noise, y, x)
    for _ in range(PIXEL_MOVES):
        new = draw()
        there = _log_noise(noise, y, new)
        # not a difference: from a pixel that y excludes, any move that y permits is taken
        accepted = torch.log(torch.rand_like(here)) + here < there
        x, here = torch.where(accepted, new, x), torch.where(accepted, there, here)
    return x


METHODS = ("metropolis", "gibbs")


Start = Callable[[Callable[[int], Tensor]], Tensor]
"""First states ``(K, N, *event_shape)``; it is given ``drawn``, of which ``drawn(i)`` are as many
draws x ~ p(x), others for each i.
"""


def restore(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    known: Tensor,
    start: Start,
    redraw: Redraw,
    fields: Mapping[str, Any],
    num_samples: int,
    num_steps: int,
    method: str,
    seed: int,
    device: str | torch.device,
) -> Restored:
    """Run ``num_samples`` chains at each image.

    Args:
        known: y, or which pixels it lacks, ``(N, *event_shape)``.
        start: gives the first states.
        redraw: the move of x.

    Raises:
        UserError: no chain can be run with this pair, in one sentence: a point mass, a subsampling
            plate, no latent site, a guide that can't score any z but its own draw, pixels that
            depend on each other given z, an x that is observed in parts.
    """
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps)):
        check_count(name, value)
    check_seed(seed)
    check_choice("method", method, METHODS)
    named, shape = as_fields(fields, len(known)), known.shape

    def drawn(stream: int) -> Tensor:
        own, (_, rows) = mix(seed, 1, stream) % 2**32, repeated(known, named, num_samples)
        options: dict[str, Any] = {"guide": guide, "device": device, "seed": own, **rows}
        like, number = torch.zeros(1, *shape[1:]), num_samples * len(known)
        images = whole_images(sample(model, number, like, mean=False, **options), shape[1:])
        return images.reshape(num_samples, *shape)

    states = start(drawn)
    size, done, real = max(1, ROWS // num_samples), 0, known.is_floating_point()
    parts: list[Restored] = []
    with visit_images(model, guide, states[0], size, device, seed, named) as (pair, batches):
        for images, own in batches:
            rows = slice(done, done + len(images))
            done = rows.stop
            if not parts:
                _refuse_unfit(pair, images, own, method)
            of_images = known[rows].to(images.device, images.dtype if real else None)
            of_rows, more = repeated(of_images, own, num_samples)
            x = states[:, rows].flatten(0, 1).to(images)
            chains = Chains(pair, x, more, partial(redraw, of_rows))
            parts.append(chains.run(num_samples, num_steps, method))

    def joined(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=dim)

    moments = joined("mean"), joined("sd"), joined("se"), joined("acceptance")
    return Restored(joined("samples", 1), joined("decoded", 1), *moments, method, num_steps)


def _refuse_unfit(pair: Pair, x: Tensor, fields: Fields, method: str) -> None:
    structure = pair.structure(x, fields)
    refuse_unscorable(pair, x, fields)
    if not structure.latents:
        raise UserError(
            "the guide draws no latent site, but a chain needs a z: given z the pixels are "
            "independent"
        )
    pair.run(x, fields).log_weights()  # refuses scaled sites
    if method == "metropolis":
        refuse_own_draws(
            structure,
            "the Metropolis test scores others: use a guide whose log_prob takes any z, or "
            "method='gibbs'",
        )
