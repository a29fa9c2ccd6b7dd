"""Guides: shapes, densities against torch's own, and the contract of ``local`` and ``build``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, distributions

from pyro_vae import fit, guides, log_weights, models
from pyro_vae.errors import UserError

X = torch.rand(6, 1, 2, 3, generator=torch.Generator().manual_seed(0))


def guide() -> guides.MeanField:
    """A small one."""
    torch.manual_seed(0)
    return guides.MeanField((1, 2, 3), 4, hidden=(5,))


def test_the_mean_field_guide_is_torchs_density() -> None:
    q = guide()
    eta = q.local(X)
    law, z = q.build(eta), torch.randn(6, 4)
    assert eta.shape == (6, 8) and law.batch_shape == (6,) and law.event_shape == (4,)
    by_hand = distributions.Normal(eta[:, :4], eta[:, 4:].exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(law.log_prob(z), by_hand)


def test_local_is_deterministic_and_row_by_row() -> None:
    q = guide()
    torch.testing.assert_close(q.local(X), torch.cat([q.local(row) for row in X.split(1)]), rtol=1e-5, atol=1e-6)
    assert torch.equal(q.local(X), q.local(X))


@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 7, 6)])
def test_build_takes_any_batch(shape: tuple[int, ...]) -> None:
    law = guide().build(torch.randn(*shape, 8))
    assert law.batch_shape == shape and law.event_shape == (4,)


def test_the_program_samples_z_in_its_plate() -> None:
    q = guide()
    trace = poutine.trace(q).get_trace(X)
    trace.compute_log_prob()
    node = trace.nodes["z"]
    assert node["value"].shape == (6, 4) and node["log_prob"].shape == (6,)
    assert [(frame.name, frame.size, frame.dim) for frame in node["cond_indep_stack"]] == [("data", 6, -1)]
    torch.testing.assert_close(node["log_prob"], q.build(q.local(X)).log_prob(node["value"]))
    assert torch.equal(trace.nodes["_RETURN"]["value"], node["value"])


def test_the_draws_have_the_guides_moments() -> None:
    q = guide()
    with torch.no_grad():
        law = q.build(q.local(X))
        draws = law.sample((4000,))
    error = (draws.mean(0) - law.mean).abs() / (law.variance / 4000).sqrt()
    assert error.max() < 4.5


def test_a_guide_with_another_family_or_way_is_a_few_lines() -> None:
    """``build`` gives the family, ``local`` the parameters: a table of them, found by ``index``, is a guide."""

    class Table(guides.AmortizedGuide):
        def __init__(self, num_data: int, latent_dim: int) -> None:
            super().__init__((1, 2, 3), latent_dim, 2 * latent_dim, hidden=())
            self.table = torch.nn.Parameter(torch.zeros(num_data, 2 * latent_dim))

        def local(self, x: Tensor, **fields: Any) -> Tensor:
            """The images' own rows."""
            return self.table[fields["index"]]

        def build(self, eta: Tensor) -> dist.TorchDistribution:
            """Laplace instead of Gauss."""
            loc, log_scale = eta.chunk(2, -1)
            return dist.Laplace(loc, log_scale.exp()).to_event(1)

    model, table = (
        models.GenerativeModel(models.StandardNormal(2), models.Gaussian(2, (1, 2, 3), hidden=(5,))),
        Table(6, 2),
    )
    history = fit(
        model,
        table,
        X,
        num_epochs=30,
        batch_size=3,
        schedule="constant",
        learning_rate=0.02,
        progress=False,
        compile="off",
    )
    assert history.train[-1].loss < history.train[0].loss
    assert (table.table.abs().sum(1) > 0).all()
    assert log_weights(model, table, X, num_particles=3).shape == (3, 6)


def test_an_abstract_guide_is_not_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        guides.AmortizedGuide((3,), 2, 4)  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: guides.MeanField((), 2), "event_shape"),
        (lambda: guides.MeanField((3,), 0), "latent_dim=0"),
        (lambda: guides.MeanField((3,), 2, net="Cov"), "did you mean 'Conv'"),
        (lambda: guides.MeanField((3,), 2)(torch.rand(5, 4)), r"\(3,\).*\(5, 4\)"),
    ],
)
def test_refusals_are_a_line(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value).split("Trace Shapes")[0].rstrip()
