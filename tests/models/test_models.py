"""Priors, likelihoods and the generative model: shapes, densities against torch's own, laws of the
program.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, distributions
from torch.nn import functional as F

from pyro_vae import models
from pyro_vae.errors import UserError
from pyro_vae.nn.conditional import Likelihood
from tests.support.grids import thinned

SHAPE = (2, 3, 4)
SMALL: dict[str, Any] = {"hidden": (6,)}


def likelihoods() -> dict[str, Likelihood]:
    """One of each kind, on images (2, 3, 4) with a latent of 5."""
    torch.manual_seed(0)
    return {
        "bernoulli": models.Bernoulli(5, SHAPE, **SMALL),
        "unit": models.Gaussian(5, SHAPE, scale=1.0, **SMALL),
        "fixed": models.Gaussian(5, SHAPE, scale=0.3, **SMALL),
        "learned": models.Gaussian(5, SHAPE, **SMALL),
        "per pixel": models.Gaussian(5, SHAPE, scale="per_pixel", **SMALL),
        "sigmoid": models.Gaussian(5, SHAPE, mean="sigmoid", **SMALL),
    }


def by_hand(name: str, part: Any, z: Tensor, x: Tensor) -> Tensor:
    """Σ over pixels of torch's own log density, from the network's raw outputs."""
    raw = part.net(z)
    first = raw[..., :2, :, :]
    if name == "bernoulli":
        return -F.binary_cross_entropy_with_logits(first, x.expand_as(first), reduction="none").sum(
            (-1, -2, -3)
        )
    if name == "per pixel":
        scale: Any = F.softplus(raw[..., 2:, :, :]) + part.min_scale
    else:
        scale = {"unit": 1.0, "fixed": 0.3}.get(name, 0.25)
    loc = first.sigmoid() if name == "sigmoid" else first
    return distributions.Normal(loc, scale).log_prob(x).sum((-1, -2, -3))


@pytest.mark.parametrize(("batch", "name"), thinned([(), (7,), (6, 7)], likelihoods()))
def test_a_likelihood_is_torchs_density(name: str, batch: tuple[int, ...]) -> None:
    part = likelihoods()[name]
    z, x = torch.randn(*batch, 5), (torch.rand(7, *SHAPE) > 0.5).float()
    x = x[0] if batch == () else x
    law = part(z)
    assert law.batch_shape == batch and law.event_shape == part.event_shape == SHAPE
    torch.testing.assert_close(law.log_prob(x), by_hand(name, part, z, x), rtol=1e-5, atol=1e-4)
    assert law.sample().shape == (*batch, *SHAPE)


def test_kinds_are_told() -> None:
    assert models.Bernoulli.kind == "mass" and models.Bernoulli.observes == "binary"
    assert models.Gaussian.kind == "density" and models.Gaussian.observes == "real"


def test_what_of_a_gaussian_is_learned() -> None:
    """A learned σ is a parameter, a fixed one a buffer, σ = 1 exactly 1."""
    found = likelihoods()
    assert "log_scale" in dict(found["learned"].named_parameters())
    assert "log_scale" not in dict(found["fixed"].named_parameters()) and "log_scale" in dict(
        found["fixed"].named_buffers()
    )
    assert (found["unit"](torch.zeros(5)).base_dist.scale == 1.0).all()
    assert not hasattr(found["per pixel"], "log_scale")


def test_a_per_pixel_scale_has_a_floor() -> None:
    part = models.Gaussian(2, (3,), scale="per_pixel", min_scale=0.05, hidden=())
    with torch.no_grad():
        for p in part.net.parameters():
            p.fill_(-1000.0)
    assert part(torch.ones(2)).base_dist.scale.tolist() == pytest.approx([0.05] * 3)


def test_a_sigmoid_mean_is_in_the_unit_interval() -> None:
    mean = models.Gaussian(2, (3,), mean="sigmoid", hidden=())(100 * torch.randn(50, 2)).mean
    assert (mean >= 0).all() and (mean <= 1).all()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: models.Gaussian(2, (3,), scale="lerned"), "did you mean 'learned'"),
        (lambda: models.Gaussian(2, (3,), scale=0.0), "must be positive"),
        (lambda: models.Gaussian(2, (3,), scale=-1), "must be positive"),
        (lambda: models.Gaussian(2, (3,), scale=float("nan")), "must be positive"),
        (lambda: models.Gaussian(2, (3,), scale=float("inf")), "must be positive"),
        (lambda: models.Gaussian(2, (3,), scale=True), "scale"),
        (lambda: models.Gaussian(2, (3,), scale=None), "scale"),  # type: ignore[arg-type]
        (lambda: models.Gaussian(2, (3,), scale="per_pixel", min_scale=-0.1), "min_scale"),
        (lambda: models.Gaussian(2, (3,), mean="sigmod"), "did you mean 'sigmoid'"),
        (lambda: models.Bernoulli(2, ()), "no pixels"),
        (lambda: models.Bernoulli(0, (3,)), "latent_dim=0"),
        (lambda: models.StandardNormal(0), "latent_dim=0"),
        (lambda: models.StandardNormal(2.5), "latent_dim=2.5"),  # type: ignore[arg-type]
    ],
)
def test_refusals_are_a_line(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_likelihood_needs_its_latent() -> None:
    with pytest.raises(ValueError, match="call it with z"):
        models.Bernoulli(2, (3,))()


def test_the_standard_normal_is_torchs() -> None:
    prior, z = models.StandardNormal(3), torch.randn(5, 3)
    law = prior()
    assert law.batch_shape == () and law.event_shape == prior.event_shape == (3,)
    torch.testing.assert_close(law.log_prob(z), distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))
    assert prior.double()().sample().dtype == torch.float64
    assert not list(prior.parameters()) and not prior.state_dict()


# ---- the program


def model() -> models.GenerativeModel:
    """A small one."""
    return models.GenerativeModel(models.StandardNormal(3), models.Bernoulli(3, (1, 2, 2), **SMALL))


def test_a_model_generates() -> None:
    found = model()(None, size=6)
    assert found.shape == (6, 1, 2, 2) and set(found.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="size=n"):
        model()()


def test_a_model_is_the_product_of_its_parts() -> None:
    program, x = model(), (torch.rand(5, 1, 2, 2) > 0.5).float()
    trace = poutine.trace(program).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == (5, 3) and trace.nodes["z"]["log_prob"].shape == trace.nodes["x"][
        "log_prob"
    ].shape == (5,)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], program.prior().log_prob(z))
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], program.likelihood(z).log_prob(x))
    assert torch.equal(trace.nodes["x"]["value"], x) and trace.nodes["x"]["is_observed"]


def test_a_model_follows_its_dtype() -> None:
    x = torch.ones(4, 1, 2, 2, dtype=torch.float64)
    trace = poutine.trace(model().double()).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].dtype == trace.nodes["x"]["log_prob"].dtype == torch.float64
