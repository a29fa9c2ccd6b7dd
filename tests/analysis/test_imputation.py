"""Draws of p(x_mis | x_obs) and of p(x | y): their moments are those of the exact conditionals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from scipy import stats
from torch import Tensor

import pyro_vae as pv
from pyro_vae.analysis.gibbs import Restored
from pyro_vae.errors import UserError
from tests.support.exact import gamma_poisson, ppca, two_levels
from tests.support.vaes import every_image, nonlinear

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
MISSING = torch.tensor([True, True, False, False, False, True])


def within(found: Tensor, expected: Tensor, error: Tensor, most: float = 5.0) -> bool:
    """Whether all figures are within ``most`` standard errors, and not by errors that are far too
    large.
    """
    scores = (found - expected) / error
    return bool((scores.abs() < most).all()) and bool(scores.square().mean() > 0.1)


def sd_agrees(found: Restored, expected: Tensor, rows: Any = ...) -> bool:
    """Standard deviations within 6%: their errors are about 1% here."""
    return bool(((found.sd[rows] / expected - 1).abs() < 0.06).all())


def gaussian_law() -> tuple[Tensor, Tensor]:
    """Mean and covariance of x under `ppca`'s six pixels, from its own generator."""
    random = torch.Generator().manual_seed(11)
    weight, bias = (
        torch.randn(6, 3, generator=random, **DOUBLE),
        torch.randn(6, generator=random, **DOUBLE),
    )
    return bias, weight @ weight.T + 0.49 * torch.eye(6, **DOUBLE)


def conditional(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, ``(N, 3)``, and covariance of the missing pixels given the others."""
    bias, cov = gaussian_law()
    seen = ~MISSING
    gain = cov[MISSING][:, seen] @ torch.linalg.inv(cov[seen][:, seen])
    return bias[MISSING] + (x[:, seen] - bias[seen]) @ gain.T, cov[MISSING][
        :, MISSING
    ] - gain @ cov[seen][:, MISSING]


# ---- missing pixels


@pytest.mark.parametrize(("widen", "shift"), [(1.0, 0.0), (1.3, 0.5)])
def test_a_linear_gaussian_model_has_its_conditional_whatever_the_guide(
    widen: float, shift: float
) -> None:
    pair = ppca(num_images=5, widen=widen, shift=shift)
    found = pv.impute(pair.model, pair.guide, pair.x, MISSING, num_samples=200, num_steps=100)
    mean, cov = conditional(pair.x)
    assert within(found.mean[:, MISSING], mean, found.se[:, MISSING])
    assert sd_agrees(found, cov.diagonal().sqrt(), (slice(None), MISSING))
    draws = found.samples[:, :, MISSING]
    assert within(draws.mean(0), mean, (cov.diagonal() / len(draws)).sqrt())
    centred = draws - mean
    correlation = torch.corrcoef(centred.flatten(0, 1).T)
    scale = cov.diagonal().sqrt()
    assert (correlation - cov / scale / scale[:, None]).abs().max() < 5 / centred[
        ..., 0
    ].numel() ** 0.5
    assert (found.acceptance > 0.3).all() and not found.warnings


def test_pseudo_gibbs_has_it_with_the_exact_guide_alone() -> None:
    for widen, shift, exact in ((1.0, 0.0, True), (1.3, 0.5, False)):
        pair = ppca(num_images=5, widen=widen, shift=shift)
        found = pv.impute(
            pair.model, pair.guide, pair.x, MISSING, num_samples=200, num_steps=60, method="gibbs"
        )
        scores = (found.mean[:, MISSING] - conditional(pair.x)[0]) / found.se[:, MISSING]
        assert bool((scores.abs() < 5).all()) is exact
        assert (found.acceptance == 1).all() and "pseudo-Gibbs" in str(found)


def test_binary_pixels_against_all_images_enumerated() -> None:
    pair = nonlinear(1)
    joint = pair.log_px.exp()  # of the 64 images, in the order of their codes
    powers = 2 ** torch.arange(6)
    x = pair.x[torch.tensor([5, 27, 60, 0])]
    found = pv.impute(pair.model, pair.guide, x, MISSING, num_samples=200, num_steps=150)
    for i, image in enumerate(x):
        same = (every_image(6)[:, ~MISSING] == image[~MISSING]).all(1)
        weights = joint * same / (joint * same).sum()
        assert within(
            found.mean[i, MISSING], weights @ every_image(6)[:, MISSING], found.se[i, MISSING]
        )
        codes = (found.samples[:, i].long() * powers).sum(1)
        counts = torch.bincount(codes, minlength=64).double()
        assert counts[~same].sum() == 0
        assert stats.chisquare(counts[same].numpy(), (200 * weights[same]).numpy()).pvalue > 1e-4


def test_a_discrete_latent_against_its_sum() -> None:
    """Three clusters of binary images, a guide that knows little; p(x) is a sum of three terms."""
    share = torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
    rates = torch.tensor([[0.9] * 6, [0.1, 0.9] * 3, [0.2] * 6], **DOUBLE)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(share))
            pyro.sample("x", dist.Bernoulli(rates[kind]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        score = x.sum(-1, keepdim=True) * torch.tensor([0.3, 0.1, -0.2], **DOUBLE)
        with pyro.plate("data", len(x)):
            pyro.sample("kind", dist.Categorical(logits=score))

    x = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 1]], **DOUBLE)
    found = pv.impute(model, guide, x, MISSING, num_samples=300, num_steps=100)
    seen = dist.Bernoulli(rates[:, ~MISSING]).to_event(1).log_prob(x[:, None, ~MISSING])
    expected = (seen + share.log()).softmax(-1) @ rates[:, MISSING]
    assert within(found.mean[:, MISSING], expected, found.se[:, MISSING])


def test_with_nothing_seen_it_is_the_models_own_law() -> None:
    pair = two_levels(3)
    found = pv.impute(
        pair.model,
        pair.guide,
        pair.x,
        torch.ones(1, dtype=torch.bool),
        num_samples=1000,
        num_steps=60,
    )
    sd = (1.0 + 0.8**2 + 0.5**2) ** 0.5
    assert within(found.mean, torch.zeros(3, 1), found.se) and sd_agrees(found, torch.tensor(sd))
    counts = gamma_poisson(2)
    found = pv.impute(
        counts.model, counts.guide, counts.x, torch.ones(2, 1, dtype=torch.bool), 1000, 60
    )
    law = stats.nbinom(2.5, 1.5 / 2.5)
    assert within(found.mean, torch.full((2, 1), float(law.mean())), found.se)
    assert sd_agrees(found, torch.tensor(float(law.std())))


def test_seen_pixels_stay_and_what_lies_under_the_mask_is_not_looked_at() -> None:
    pair = ppca(num_images=4)
    state = torch.get_rng_state()
    found = pv.impute(pair.model, pair.guide, pair.x, MISSING, num_samples=3, num_steps=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.samples[..., ~MISSING], pair.x[:, ~MISSING].expand(3, -1, -1))
    assert (found.sd[:, ~MISSING] < 1e-6).all()
    holes = torch.where(MISSING, torch.nan, pair.x)
    again = pv.impute(
        pair.model, pair.guide, holes.numpy(), MISSING.numpy(), num_samples=3, num_steps=4
    )
    assert torch.equal(found.samples, again.samples) and torch.equal(found.mean, again.mean)
    other = pv.impute(pair.model, pair.guide, pair.x, MISSING, num_samples=3, num_steps=4, seed=1)
    assert not torch.equal(found.samples, other.samples)
    alone = pv.impute(pair.model, pair.guide, pair.x, MISSING, num_samples=1, num_steps=4)
    assert alone.se.isnan().all() and alone.mean.isfinite().all()


# ---- noise


@pytest.mark.parametrize(
    ("widen", "shift", "sd"), [(1.3, 0.5, 0.5), (1.0, 2.5, 0.8), (0.6, 1.0, 0.8)]
)
def test_gaussian_noise_on_a_linear_gaussian_model(widen: float, shift: float, sd: float) -> None:
    """From a guide that is too wide, 2.5 of its own standard deviations off, or too narrow: alone,
    its draws would be accepted in 51%, 4% and 13% of the steps, and the mean be off by 60 errors.
    """
    pair = ppca(num_images=3, widen=widen, shift=shift)
    noise = torch.randn(pair.x.shape, generator=torch.Generator().manual_seed(1), **DOUBLE)
    y = pair.x + sd * noise
    found = pv.denoise(
        pair.model, pair.guide, y, lambda x: dist.Normal(x, sd), num_samples=200, num_steps=120
    )
    bias, cov = gaussian_law()
    gain = cov @ torch.linalg.inv(cov + sd**2 * torch.eye(6, **DOUBLE))
    assert within(found.mean, bias + (y - bias) @ gain.T, found.se)
    assert sd_agrees(found, (cov - gain @ cov).diagonal().sqrt())
    assert (found.acceptance > 0.4).all() and not found.warnings


def test_missing_pixels_from_a_guide_that_is_far_off() -> None:
    pair = ppca(num_images=3, shift=2.5)
    found = pv.impute(pair.model, pair.guide, pair.x, MISSING, num_samples=200, num_steps=120)
    mean, cov = conditional(pair.x)
    assert within(found.mean[:, MISSING], mean, found.se[:, MISSING])
    assert sd_agrees(found, cov.diagonal().sqrt(), (slice(None), MISSING))


def test_an_angle_is_not_shifted() -> None:
    """Its density repeats itself at 2π, so a walk would leave the circle; z is drawn as before."""
    flat = {"loc": torch.zeros((), **DOUBLE), "concentration": torch.tensor(0.5, **DOUBLE)}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(**flat))
            place = torch.stack((angle.cos(), angle.sin()), -1)
            seen.append(float(angle.abs().max()))
            pyro.sample("x", dist.Normal(place, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("angle", dist.VonMises(torch.atan2(x[..., 1], x[..., 0]), 4.0))

    seen: list[float] = []
    y = torch.tensor([[1.0, 0.0], [-1.0, 0.1]], **DOUBLE)
    found = pv.denoise(
        model, guide, y, lambda x: dist.Normal(x, 0.4), num_samples=300, num_steps=80
    )
    assert max(seen) <= np.pi + 1e-9
    grid = torch.linspace(-np.pi, np.pi, 2001, **DOUBLE)[1:]
    place = torch.stack((grid.cos(), grid.sin()), -1)
    joint = dist.VonMises(**flat).log_prob(grid) + dist.Normal(place, 0.32**0.5).log_prob(
        y[:, None]
    ).sum(-1)
    expected = (joint.softmax(-1) @ place + y) / 2  # x is halfway between both, of equal variance
    assert within(found.mean, expected, found.se)


def test_inverted_pixels_against_all_images_enumerated() -> None:
    pair = nonlinear(1)
    y = pair.x[torch.tensor([5, 27, 60])]

    def noise(x: Tensor) -> Any:
        return dist.Bernoulli(0.2 + 0.6 * x)

    found = pv.denoise(pair.model, pair.guide, y, noise, num_samples=300, num_steps=150)
    given = noise(every_image(6)).log_prob(y[:, None]).sum(-1) + pair.log_px
    assert within(found.mean, given.softmax(-1) @ every_image(6), found.se)


def test_counts_under_gaussian_noise_that_lies_between_them() -> None:
    """x is a whole number, y is not: x is never taken for y."""
    pair = gamma_poisson(4)
    y = torch.tensor([[0.3], [2.6], [-0.5], [4.4]], **DOUBLE)
    found = pv.denoise(
        pair.model, pair.guide, y, lambda x: dist.Normal(x, 0.8), num_samples=400, num_steps=150
    )
    counts = np.arange(80)
    joint = stats.nbinom.logpmf(counts, 2.5, 1.5 / 2.5) + stats.norm.logpdf(y.numpy(), counts, 0.8)
    weights = np.exp(joint - joint.max(1, keepdims=True))
    expected = torch.from_numpy((weights * counts).sum(1) / weights.sum(1)).unsqueeze(1)
    assert within(found.mean, expected, found.se)
    assert torch.equal(found.samples, found.samples.round())


# ---- mistakes


def point(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("latent", dist.Delta(x[:, :3], event_dim=1))


def planar(x: Tensor) -> None:
    flow = dist.transforms.Planar(3).double()
    base = dist.Normal(x[:, :3], torch.ones((), **DOUBLE)).to_event(1)
    with pyro.plate("images", len(x)):
        pyro.sample("latent", dist.TransformedDistribution(base, [flow]))


def dependent(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        z = pyro.sample("latent", dist.Normal(torch.zeros(3, **DOUBLE), 1.0).to_event(1))
        mean = torch.cat((z, z), -1)
        pyro.sample("pixels", dist.MultivariateNormal(mean, torch.eye(6, **DOUBLE)), obs=x)


def halves(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        z = pyro.sample("latent", dist.Normal(torch.zeros(3, **DOUBLE), 1.0).to_event(1))
        pyro.sample("left", dist.Normal(z, 1.0).to_event(1), obs=x[:, :3])
        pyro.sample("right", dist.Normal(z, 1.0).to_event(1), obs=x[:, 3:])


def test_what_has_no_such_chain_is_told_in_one_sentence() -> None:
    pair = ppca(num_images=4)
    model, guide, x = pair.model, pair.guide, pair.x
    for change, words in (
        ({"missing": torch.ones(6)}, "expected bool"),
        ({"missing": torch.ones(5, dtype=torch.bool)}, "broadcasts"),
        ({"method": "metropols"}, "did you mean 'metropolis'"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"x": torch.where(MISSING, x, torch.nan)}, "NaN"),
        ({"guide": point}, "point mass"),
        ({"guide": planar}, "method='gibbs'"),
        ({"model": dependent}, "depend on each other"),
        ({"model": halves}, "left, right"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            pv.impute(
                **{
                    "model": model,
                    "guide": guide,
                    "x": x,
                    "missing": MISSING,
                    "num_steps": 2,
                    **change,
                }
            )
        assert "\n" not in str(caught.value)
    assert pv.impute(model, planar, x, MISSING, num_steps=3, method="gibbs").mean.isfinite().all()
    for noise, words in (
        (0.3, "a function of x"),
        (lambda x: dist.Normal(x, 0.3).to_event(1), "one number for each pixel"),
        (lambda x: dist.Uniform(x + 100, x + 101), r"image 0, pixel \(0,\)"),
        (lambda x: dist.Bernoulli(torch.sigmoid(x)), "no density under noise"),
    ):
        with pytest.raises(UserError, match=words):
            pv.denoise(model, guide, x, noise, num_samples=2, num_steps=2)
