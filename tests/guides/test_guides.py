"""Guides: shapes, densities against torch's own, and the contract of ``local`` and ``build``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, distributions
from torch.distributions import kl_divergence

from pyro_vae import fit, guides, log_marginal, log_weights, models
from pyro_vae.errors import UserError
from pyro_vae.nn.mlp import MLP
from pyro_vae.objectives import Loss, Trace_ELBO
from pyro_vae.pair.runtime import Pair

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
    torch.testing.assert_close(
        q.local(X), torch.cat([q.local(row) for row in X.split(1)]), rtol=1e-5, atol=1e-6
    )
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
    assert [(frame.name, frame.size, frame.dim) for frame in node["cond_indep_stack"]] == [
        ("data", 6, -1)
    ]
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
    """``build`` gives the family, ``local`` the parameters: a table of them, found by ``index``, is
    a guide.
    """

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
        models.GenerativeModel(
            models.StandardNormal(2), models.Gaussian(2, (1, 2, 3), hidden=(5,))
        ),
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
        (lambda: guides.MeanField(2, (1, 8, 8)), "were the two swapped"),
        (lambda: guides.FullRank(2, (1, 8, 8)), "were the two swapped"),
        (lambda: guides.MeanField((3,), 2, hiden=(3,)), "did you mean 'hidden'"),
        (lambda: guides.MeanField((3,), 2, net=MLP, hiden=(3,)), "did you mean 'hidden'"),
        (lambda: guides.MeanField((3,), 2, net="Cov"), "did you mean 'Conv'"),
        (lambda: guides.MeanField((3,), 2)(torch.rand(5, 4)), r"\(3,\).*\(5, 4\)"),
    ],
)
def test_refusals_are_a_line(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value).split("Trace Shapes")[0].rstrip()


# ---- correlated Gaussians


@pytest.mark.parametrize(("name", "args"), [("FullRank", {}), ("LowRank", {"rank": 2})])
def test_the_kl_of_a_correlated_gaussian_is_that_of_its_covariance(
    name: str, args: dict[str, int]
) -> None:
    torch.manual_seed(0)
    q = getattr(guides, name)((3,), 4, hidden=(5,), **args).double()
    law = q.build(torch.randn(7, 3, q.local(torch.zeros(1, 3).double()).shape[-1]).double())
    loc, scale = torch.randn(4).double(), torch.rand(4).double() + 0.5
    same = distributions.MultivariateNormal(law.mean, law.covariance_matrix)
    other = distributions.MultivariateNormal(loc, scale.square().diag())
    found = kl_divergence(law, dist.Normal(loc, scale).to_event(1))
    assert found.shape == (7, 3)
    torch.testing.assert_close(found, kl_divergence(same, other))


def test_other_correlated_kls_are_not_made_up() -> None:
    law = guides.FullRank((3,), 2, hidden=()).build(torch.zeros(1, 5))
    for prior in (
        dist.Laplace(torch.zeros(2), 1.0).to_event(1),
        dist.Normal(torch.zeros(3, 2), 1.0).to_event(2),
    ):
        with pytest.raises(NotImplementedError):
            kl_divergence(law, prior)


def test_full_rank_lays_eta_out_as_it_says() -> None:
    """η = (μ, below the diagonal by rows, log diagonal)."""
    law = guides.FullRank((3,), 3, hidden=()).build(torch.arange(9.0).unsqueeze(0) / 10)
    expected = torch.tensor([[0.6, 0.0, 0.0], [0.3, 0.7, 0.0], [0.4, 0.5, 0.8]])
    expected = expected.tril(-1) + expected.diagonal().exp().diag()
    torch.testing.assert_close(law.scale_tril[0], expected)
    torch.testing.assert_close(law.loc[0], torch.tensor([0.0, 0.1, 0.2]))


def test_low_rank_is_its_covariance() -> None:
    eta = torch.randn(1, 12).double()
    law = guides.LowRank((3,), 3, rank=2, hidden=()).build(eta)
    factor = eta[0, 6:].reshape(3, 2)
    torch.testing.assert_close(
        law.covariance_matrix[0], factor @ factor.T + (2 * eta[0, 3:6]).exp().diag()
    )


# ---- the equal mixture


def test_the_mixtures_pathwise_gradient_is_exact() -> None:
    """∇_η E_q[f(z) − log q(z)] from draws, against quadrature: 5 standard errors, and not the 0 of
    a draw without a path.
    """
    torch.manual_seed(0)
    guide = guides.MixtureOfGaussians((3,), 1, components=3, hidden=()).double()
    eta = torch.tensor([[-1.0, -0.5, 0.3, 0.2, 1.5, -1.0]]).double()
    line = torch.linspace(-15, 15, 6001).double().unsqueeze(-1)

    def bound(z: Tensor, log_q: Tensor) -> Tensor:
        return torch.sin(2 * z[..., 0]) - 0.3 * z[..., 0] ** 2 - log_q

    exact_eta = eta.clone().requires_grad_()
    log_q = guide.build(exact_eta).log_prob(line)
    (exact,) = torch.autograd.grad((log_q.exp() * bound(line, log_q)).sum() * 0.005, exact_eta)
    many = eta.expand(40_000, -1).clone().requires_grad_()
    law = guide.build(many)
    z = law.rsample()
    (each,) = torch.autograd.grad(bound(z, law.log_prob(z)).sum(), many)
    error = (each.mean(0) - exact[0]).abs() / (each.std(0) / 40_000**0.5)
    assert bool((error < 5).all()) and float(exact.abs().max()) > 0.5


def test_the_mixture_draws_each_component_alike() -> None:
    eta = torch.tensor([[-50.0, -3.0, 0.0, -3.0, 50.0, -3.0, 100.0, -3.0]])
    law = guides.MixtureOfGaussians((3,), 1, components=4, hidden=()).build(eta)
    counts = torch.bincount(
        (law.rsample(torch.Size([4000])).flatten() / 50).round().long() + 1, minlength=4
    )
    assert bool(((counts - 1000).abs() < 5 * 750**0.5).all())


# ---- the point mass


def test_an_autoencoder_is_a_point_mass_without_kl() -> None:
    torch.manual_seed(0)
    shape, x = (1, 2, 3), (X > 0.5).float()
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, shape, hidden=(5,))
    )
    guide = guides.PointEstimate(shape, 2, hidden=(5,))
    by_hand = -model.likelihood(guide.net(x)).log_prob(x).sum()
    for objective in ("Trace_ELBO", "TraceMeanField_ELBO"):
        history = fit(
            model,
            guide,
            x,
            objective,
            num_steps=1,
            batch_size=6,
            learning_rate=1e-12,
            kl_weight=0.0,
            progress=False,
        )
        assert history.train[0].loss == pytest.approx(float(by_hand.detach()) / 6, rel=1e-6)
    with pytest.raises(UserError, match="point mass"):
        log_marginal(model, guide, x, num_samples=5)


def test_a_point_mass_at_full_weight_is_the_map_estimate() -> None:
    """−log p(x, z) at z = f(x)."""
    torch.manual_seed(0)
    shape, x = (1, 2, 3), (X > 0.5).float()
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, shape, hidden=(5,))
    )
    guide = guides.PointEstimate(shape, 2, hidden=(5,))
    z = guide.net(x)
    joint = model.likelihood(z).log_prob(x) + model.prior().log_prob(z)
    torch.testing.assert_close(Loss(Trace_ELBO(), Pair.of(model, guide))(x), -joint.sum())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: guides.LowRank((3,), 2, rank=0), "rank=0"),
        (lambda: guides.MixtureOfGaussians((3,), 2, components=0), "components=0"),
        (lambda: guides.MixtureOfGaussians((3,), 2, components=True), "components=True"),
        (lambda: guides.FullRank((3,), 0), "latent_dim=0"),
    ],
)
def test_refusals_of_families_are_a_line(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value)
