"""One σ an image, and means in (−1, 1)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import pyro_vae as pv
from pyro_vae import guides, models

SHAPE, LATENT = (1, 3, 4), 2


def likelihood(**settings: str) -> models.Gaussian:
    """In float64, of 12 pixels."""
    torch.manual_seed(0)
    return models.Gaussian(SHAPE, LATENT, hidden=(5,), **settings).double()


@pytest.mark.parametrize("lead", [(), (7,), (3, 7)])
def test_one_scale_an_image(lead: tuple[int, ...]) -> None:
    """log N(x; f_μ(z), f_σ(z)² I) by its formula, and σ differs between images alone."""
    law = likelihood(scale="per_image")
    z, x = torch.randn(*lead, LATENT).double(), torch.randn(*lead, *SHAPE).double()
    mean, raw = law.outputs(z)
    scale = F.softplus(raw.flatten(-3).mean(-1)) + law.min_scale
    squares = (x - mean).square().flatten(-3).sum(-1)
    log_2pi = torch.tensor(2 * torch.pi).double().log()
    expected = -0.5 * squares / scale**2 - 12 * (scale.log() + 0.5 * log_2pi)
    found = law(z)
    torch.testing.assert_close(found.log_prob(x), expected)
    assert found.batch_shape == lead and found.event_shape == SHAPE
    if lead:
        assert len(found.base_dist.scale.flatten(-3)[..., 0].unique()) == scale.numel()


def test_a_mean_in_minus_one_to_one() -> None:
    law = likelihood(mean="tanh")
    z = torch.randn(50, LATENT).double() * 10
    (location,) = law.outputs(z)
    torch.testing.assert_close(law(z).mean, torch.tanh(location))
    assert bool((law(z).mean.abs() <= 1).all())
    inner = torch.tensor([-0.9, -0.1, 0.4]).double()
    (start,) = law.outputs_at_mean(inner)
    assert start is not None
    torch.testing.assert_close(torch.tanh(start), inner)


def test_they_train_and_score() -> None:
    torch.manual_seed(1)
    net = {"hidden": (8,)}
    law = models.Gaussian(SHAPE, LATENT, scale="per_image", mean="tanh", **net)
    model = models.GenerativeModel(models.StandardNormal(LATENT), law)
    guide = guides.MeanField(SHAPE, LATENT, **net)
    x = 0.3 * torch.randn(32, *SHAPE)
    history = pv.fit(model, guide, x, num_epochs=8, learning_rate=0.02, progress=False)
    assert history.train[-1].loss < history.train[0].loss
    assert (
        pv.log_marginal(model, guide, x, num_samples=50, compile="off").protocol["kind"]
        == "density"
    )
    with pytest.raises(pv.UserError, match="per_image"):
        models.Gaussian(SHAPE, LATENT, scale="per_imag")
