"""Circular latents: scored by the guide's own draws, and never by draws that leave the circle."""

from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist

from pyro_vae import UserError, log_marginal


@pytest.mark.parametrize("law", ["VonMises", "ProjectedNormal", "WrappedTwice"])
def test_a_circular_latent_is_not_widened(law: str) -> None:
    """A density that goes on periodically is no density on the line: the mixture's weights would be
    too large.
    """

    class WrappedTwice(dist.VonMises):
        """A circular law of somebody's own."""

    def draw(loc: torch.Tensor, concentration: float) -> Any:
        if law == "ProjectedNormal":
            return dist.ProjectedNormal(concentration * torch.stack((loc.cos(), loc.sin()), -1))
        kind = dist.VonMises if law == "VonMises" else WrappedTwice
        return kind(loc, torch.tensor(concentration))

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", draw(x.new_zeros(len(x)), 0.5))
            place = z if law == "ProjectedNormal" else torch.stack((z.cos(), z.sin()), -1)
            pyro.sample("x", dist.Normal(place, 0.6).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", draw(torch.atan2(x[:, 1], x[:, 0]), 2.0))

    x = torch.tensor([[-1.0, 0.0]]).repeat(4, 1)
    assert log_marginal(model, guide, x, num_samples=50).mean < 0
    with pytest.raises(UserError, match=r"circular|bijection"):
        log_marginal(model, guide, x, num_samples=50, proposal="Defensive")
