"""Pages of imputed and denoised images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.analysis.gibbs import Restored
from pyro_vae.analysis.restoration import denoise, impute
from pyro_vae.errors import UserError
from pyro_vae.plots.context import Subject
from pyro_vae.plots.figures import rows_figure
from pyro_vae.plots.images import DoesNotFit, picture_shape

IMAGES = 10
CHAINS, STEPS = 16, 100
DRAWS = 3
FLIPS = 0.1
"""The share of binary pixels that noise inverts."""
NOISE = 0.2
"""The standard deviation of noise on other pixels, relative to what is shown from black to white.
"""


def imputation(subject: Subject) -> Figure:
    """Test images with half of their pixels missing, and p(missing | seen): its mean and draws,
    with the error in numbers.
    """
    shape = subject.event_shape
    picture_shape(shape)
    x = subject.x[:IMAGES]
    missing = missing_half(len(x), shape, subject.seed) | x.isnan()
    found = _found(impute, subject, x, missing)
    grey = torch.full_like(x, sum(subject.values) / 2)
    pixel_means = subject.x.nanmean(0).expand_as(x)
    seen, draws = torch.where(missing, grey, x), torch.where(missing, found.decoded, x)
    errors = rms((found.mean - x)[missing]), rms((pixel_means - x)[missing])
    title = "Missing pixels (grey) by posterior sampling: mean of $p(x_{mis}|x_{obs})$; means of $p(x|z)$ at three draws $z$\n"
    title += f"RMS error of the missing pixels: {errors[0]:.3f}; of the mean test image in their place: {errors[1]:.3f}\n"
    return _page(subject, x, ("seen", seen), found, draws, title)


def denoising(subject: Subject) -> Figure:
    """Test images, corrupted by a known noise, and E[x | y] by posterior sampling, with the error
    before and after.
    """
    picture_shape(subject.event_shape)
    x = subject.x[:IMAGES]
    if bool(x.isnan().any()):
        raise DoesNotFit("the test images have missing entries, and noise is put on whole ones")
    law, words = noise_for(subject)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        y = law(x).sample()
    found = _found(denoise, subject, y, law)
    errors = rms(y - x), rms(found.mean - x)
    title = f"Denoising by posterior sampling: mean of $p(x|y)$, $y$: {words}; means of $p(x|z)$ at three draws $z$\n"
    title += f"RMS error of a pixel: {errors[0]:.3f} before, {errors[1]:.3f} after\n"
    return _page(subject, x, ("noisy", y), found, found.decoded, title)


def missing_half(number: int, event_shape: tuple[int, ...], seed: int) -> Tensor:
    """True where a pixel is missing, all channels together: the lower half of the first images,
    then pixels at random.
    """
    channels, height, width = picture_shape(event_shape)
    mask = torch.zeros(number, 1, height, width, dtype=torch.bool)
    lower = (number + 1) // 2
    mask[:lower, :, height // 2 :] = True
    chosen = torch.rand(
        number - lower, 1, height, width, generator=torch.Generator().manual_seed(seed)
    )
    mask[lower:] = chosen < 0.5
    return mask.expand(-1, channels, -1, -1).reshape(number, *event_shape)


def noise_for(subject: Subject) -> tuple[Callable[[Tensor], Any], str]:
    """p(y | x) for this kind of data, and what it does, in words."""
    if bool(((subject.x == 0) | (subject.x == 1)).all()):
        return lambda x: dist.Bernoulli(
            FLIPS + (1 - 2 * FLIPS) * x
        ), f"{FLIPS:.0%} of the pixels inverted"
    low, high = subject.values
    sd = NOISE * (high - low)
    return lambda x: dist.Normal(x, sd), f"Gaussian noise of sd {sd:.3g}"


def rms(difference: Tensor) -> float:
    """The root of the mean square, over the pixels that are known."""
    return float(difference.double().square().nanmean().sqrt())


def _found(restore: Callable[..., Restored], subject: Subject, given: Tensor, how: Any) -> Restored:
    fields = subject.fields(slice(len(given)))
    options = {"num_samples": CHAINS, "num_steps": STEPS, **subject.options, **fields}
    try:
        return restore(subject.model, subject.guide, given, how, **options)
    except UserError as reason:
        raise DoesNotFit(str(reason)) from reason


def _page(
    subject: Subject,
    x: Tensor,
    given: tuple[str, Tensor],
    found: Restored,
    draws: Tensor,
    title: str,
) -> Figure:
    rows = [("test image", x), given, ("mean", found.mean)]
    rows += [(f"draw {k + 1}", draws[k]) for k in range(DRAWS)]
    title += f"{CHAINS} Metropolis-within-Gibbs chains of {STEPS} steps an image, acceptance "
    title += f"{float(found.acceptance.mean()):.2f}{' (hardly moving)' * bool(found.warnings)}"
    return rows_figure(rows, subject.values, title)
