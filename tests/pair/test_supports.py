"""Where the guide never draws, and where the prior has no mass: found by values, told or refused."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

import pyro_vae as pv
from pyro_vae import guides, models
from tests.support.grids import thinned

DATA = torch.randn(40, 1, generator=torch.Generator().manual_seed(2))


def programs(
    prior: Callable[[int], Any], guide_law: Callable[[Tensor], Any], code: Any = None
) -> tuple[Any, Any]:
    """One latent with these laws, and x = z + noise."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(len(x)))
            mean = z.float().unsqueeze(-1) if code is None else code(z)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        bias = pyro.param("bias", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide_law(x[..., 0] + bias))

    return model, guide


def ones(x: Tensor) -> Tensor:
    return 1 + 0 * x  # with a path to the guide's parameter


LACKING: dict[str, tuple[Callable[[int], Any], Callable[[Tensor], Any], float]] = {
    # prior, guide, the prior's mass that the guide never draws
    "a Gamma's tail": (
        lambda n: dist.Gamma(torch.ones(n), 1.0),
        lambda x: dist.Uniform(0 * x, 1 + ones(x)),
        math.exp(-2),
    ),
    "one side": (
        lambda n: dist.Laplace(torch.zeros(n), 1.0),
        lambda x: dist.Exponential(ones(x)),
        0.5,
    ),
    "a class": (
        lambda n: dist.Categorical(torch.ones(n, 4) / 4),
        lambda x: dist.Categorical(
            logits=torch.tensor([0.0, 0.0, -math.inf, 0.0]) + 0 * x.unsqueeze(-1)
        ),
        0.25,
    ),
    "half of a Beta": (
        lambda n: dist.Beta(torch.ones(n), 1.0),
        lambda x: dist.TransformedDistribution(
            dist.Beta(ones(x), 1.0), [dist.transforms.AffineTransform(0.5, 0.5)]
        ),
        0.5,
    ),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_guide_that_never_draws_a_part_of_the_prior_is_told(kind: str) -> None:
    prior, guide_law, mass = LACKING[kind]
    model, guide = programs(prior, guide_law)
    report = pv.check_pair(model, guide, DATA)
    (told,) = report.warnings
    assert "no density at" in told
    share = float(told.split("no density at ")[1].split("%")[0]) / 100
    assert (
        abs(share - mass) < 4 * math.sqrt(mass * (1 - mass) / 100) + 0.005
    )  # of 100 draws, rounded
    history = pv.fit(model, guide, DATA, num_steps=1, objective="Trace_ELBO", progress=False)
    assert "no density at" in history.note
    result = pv.log_marginal(model, guide, DATA, num_samples=20, compile="off")
    assert any("no density at" in text for text in result.warnings)
    assert "no density at" in str(result)


def test_the_part_that_is_told_of_is_what_the_number_lacks() -> None:
    """With a guide on z > 0 alone the estimate converges to log ∫_{z>0} p(x, z) dz, which is below
    log p(x).
    """
    model, guide = programs(
        lambda n: dist.Normal(torch.zeros(n), 1.0), lambda x: dist.HalfNormal(1.5 * ones(x))
    )
    pv.check_pair(model, guide, DATA)
    pv.fit(
        model, guide, DATA, num_steps=1, learning_rate=1e-9, objective="Trace_ELBO", progress=False
    )
    result = pv.log_marginal(model, guide, DATA, num_samples=5000, compile="off")
    whole = dist.Normal(0.0, math.sqrt(2.0)).log_prob(DATA[:, 0])
    positive = 1 - dist.Normal(0.5 * DATA[:, 0], math.sqrt(0.5)).cdf(torch.tensor(0.0))
    right = (whole + positive.log()).double()
    assert bool(((result.log_px - right).abs() < 5 * result.se + 1e-3).all())
    assert result.mean < float(whole.mean()) - 0.5
    assert any("no density at" in text for text in result.warnings)


def test_what_is_drawn_from_the_prior_lacks_nothing() -> None:
    """With the prior as proposal the number is log p(x), whatever the guide never draws, and no
    part is said to lack.
    """
    model, _ = programs(
        lambda n: dist.Normal(torch.zeros(n), 1.0), lambda x: dist.HalfNormal(ones(x))
    )

    def half(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.HalfNormal(1.5 * x.new_ones(len(x))))

    result = pv.log_marginal(model, half, DATA, num_samples=5000, proposal="prior", compile="off")
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(DATA[:, 0]).double()
    assert bool(((result.log_px - exact).abs() < 5 * result.se + 1e-3).all())
    assert not any("no density at" in text for text in result.warnings)
    assert any(
        "no density at" in text
        for text in pv.log_marginal(model, half, DATA, num_samples=50, compile="off").warnings
    )


HOLDING: dict[str, tuple[Callable[[int], Any], Callable[[Tensor], Any]]] = {
    "heavier tails": (
        lambda n: dist.Normal(torch.zeros(n), 1.0),
        lambda x: dist.StudentT(3 * ones(x), x),
    ),
    "lighter tails": (
        lambda n: dist.Cauchy(torch.zeros(n), 1.0),
        lambda x: dist.Normal(x, ones(x)),
    ),
    "positive": (
        lambda n: dist.Gamma(2 * torch.ones(n), 1.0),
        lambda x: dist.LogNormal(x, ones(x)),
    ),
    "half": (lambda n: dist.HalfNormal(torch.ones(n)), lambda x: dist.Gamma(ones(x), 1.0)),
    "a simplex of many, in float32": (
        lambda n: dist.Dirichlet(torch.ones(n, 300)),
        lambda x: dist.Dirichlet(torch.ones(300) + 0 * x.unsqueeze(-1)),
    ),
    "a circle": (lambda n: dist.VonMises(torch.zeros(n), 1.0), lambda x: dist.VonMises(x, ones(x))),
    "counts": (lambda n: dist.Poisson(torch.ones(n)), lambda x: dist.Geometric(0.3 * ones(x))),
    "the unit interval, to its rounded end": (
        lambda n: dist.Beta(torch.ones(n), 1.0),
        lambda x: dist.TransformedDistribution(
            dist.Normal(x, 6 * ones(x)), [dist.transforms.SigmoidTransform()]
        ),
    ),
}


@pytest.mark.parametrize("kind", HOLDING)
def test_a_guide_that_covers_the_prior_is_not_warned_of(kind: str) -> None:
    code = (lambda z: z[..., :1]) if "simplex" in kind else None
    model, guide = programs(*HOLDING[kind], code)
    assert pv.check_pair(model, guide, DATA).warnings == ()


OUTSIDE: dict[str, tuple[Callable[[int], Any], Callable[[Tensor], Any]]] = {
    "beyond a box": (
        lambda n: dist.Uniform(-0.5 * torch.ones(n), 0.5),
        lambda x: dist.Normal(x, ones(x)),
    ),
    "below zero": (lambda n: dist.Exponential(torch.ones(n)), lambda x: dist.Normal(x, ones(x))),
    "a class that the prior lacks": (
        lambda n: dist.Categorical(logits=torch.tensor([0.0, 0.0, -math.inf]).expand(n, 3)),
        lambda x: dist.Categorical(torch.ones(3) / 3 + 0 * x.unsqueeze(-1)),
    ),
}


@pytest.mark.parametrize(("call", "kind"), thinned(["check_pair", "fit", "log_marginal"], OUTSIDE))
def test_a_guide_that_draws_where_the_prior_has_nothing_is_refused(kind: str, call: str) -> None:
    model, guide = programs(*OUTSIDE[kind])
    with pytest.raises(pv.UserError, match="give the guide a distribution on that support"):
        if call == "check_pair":
            pv.check_pair(model, guide, DATA)
        elif call == "fit":
            pv.fit(model, guide, DATA, num_steps=1, objective="Trace_ELBO", progress=False)
        else:
            pyro.clear_param_store()
            pv.log_marginal(
                lambda x: model(x),
                lambda x: _without_param(OUTSIDE[kind][1], x),
                DATA,
                num_samples=5,
            )


def _without_param(law: Callable[[Tensor], Any], x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", law(x[..., 0]))


def test_a_guide_that_scores_its_own_draws_alone_is_said_to_be_unchecked() -> None:
    torch.manual_seed(0)
    shape = (1, 4, 4)
    x = (torch.rand(20, *shape) < 0.4).float()
    model = models.GenerativeModel(
        prior=models.StandardNormal(2), likelihood=models.Bernoulli(2, shape)
    )
    (told,) = pv.check_pair(model, guides.Planar(shape, 2), x).warnings
    assert "only scores its own draws" in told
    assert "is not checked" in told


def test_complex_parameters_are_served_and_a_complex_density_is_one_sentence() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(0.3 * torch.randn(1, 3, dtype=torch.cfloat))
    x = torch.randn(20, 3)

    def model(x: Tensor, real: bool = True) -> None:
        pyro.param("w", weight)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            mean = z.to(torch.cfloat) @ weight
            pyro.sample(
                "x",
                dist.Normal(mean.abs() if real else mean, 1.0, validate_args=False).to_event(1),
                obs=x,
            )

    def guide(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1] + shift, 1.0).to_event(1))

    before = weight.detach().clone()
    pv.fit(model, guide, x, num_steps=2, learning_rate=0.1, progress=False)
    assert not torch.equal(weight, before)
    assert math.isfinite(pv.log_marginal(model, guide, x, num_samples=10, compile="off").mean)
    with pytest.raises(pv.UserError, match="log density is complex"):
        pv.check_pair(lambda x: model(x, real=False), guide, x)
