"""What is particular to a likelihood: its law against SciPy's, its limits, its numerics, its start
at a mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from pyro_vae.models.discretized_logistic import LogisticLevels
from scipy import stats
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vae as pv
from pyro_vae import guides, models
from pyro_vae.choices import registry, specs
from pyro_vae.data.datasets import load
from pyro_vae.data.transforms import observe
from pyro_vae.errors import UserError
from pyro_vae.evaluation.compare import compare
from pyro_vae.nn.special import log_gamma_ratio
from pyro_vae.pair.program import validation
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train
from tests.support.grids import thinned

LEVELS = 17
SHAPE = (1, 2, 3)
SPECS = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogistic(components=3)",
    "Gaussian",
    "Gaussian(scale=per_pixel)",
    "Gaussian(mean=sigmoid)",
    "NegativeBinomial",
    "NegativeBinomial(total_count=per_pixel)",
    "NegativeBinomial(total_count=2)",
    "NegativeBinomial(total_count=per_pixel, zero_inflation=per_pixel)",
    "Poisson",
    "Poisson(zero_inflation=learned)",
    "StudentT",
    "StudentT(df=0.5, scale=per_pixel)",
]


def build(spec: str, dtype: torch.dtype = torch.float64, **context: Any) -> Any:
    """The likelihood as the command line builds it, away from where it starts."""
    given = {
        "event_shape": SHAPE,
        "latent_dim": 2,
        "levels": LEVELS,
        "net": "MLP(hidden=(4,))",
    } | context
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return registry.build("likelihood", spec, **given).to(dtype)


def law_of(spec: str, dtype: torch.dtype = torch.float64, batch: tuple[int, ...] = (3,)) -> Any:
    """p(x | z) at a few z, without the event dimension."""
    z = 2 * torch.randn(*batch, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return build(spec, dtype)(z).base_dist


def scipy_law(spec: str, law: Any) -> Any:
    """The same law by SciPy, from the parameters that the law is known by."""
    name = specs.parse(spec).name
    if name == "Bernoulli":
        return stats.bernoulli(law.probs.numpy())
    if name == "Binomial":
        return stats.binom(LEVELS - 1, law.logits.sigmoid().numpy())
    if name == "NegativeBinomial":
        return stats.nbinom(law.total_count.numpy(), (-law.logits).sigmoid().numpy())
    if name == "Poisson":
        return stats.poisson(law.rate.numpy())
    if name == "Gaussian":
        return stats.norm(law.loc.numpy(), law.scale.numpy())
    assert name == "StudentT"
    return stats.t(law.df.numpy(), law.loc.numpy(), law.scale.numpy())


@torch.no_grad()
@pytest.mark.parametrize(
    "spec", [each for each in SPECS if not (each.startswith(("C", "D")) or "zero" in each)]
)
def test_densities_are_scipys(spec: str) -> None:
    law = law_of(spec)
    other = scipy_law(spec, law)
    x = law.sample((50,))
    expected = other.logpmf(x.numpy()) if law.support.is_discrete else other.logpdf(x.numpy())
    np.testing.assert_allclose(law.log_prob(x).numpy(), expected, rtol=1e-9, atol=1e-9)
    if "df=0.5" not in spec:
        np.testing.assert_allclose(law.mean.numpy(), other.mean(), rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["learned", "per_pixel"])
@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial"])
def test_zero_inflation_is_pyros_and_an_offset_is_of_the_log_rate(name: str, gate: str) -> None:
    """ZeroInflatedPoisson and ZeroInflatedNegativeBinomial, at e^o times the rate of a row of
    size 1; in every layout of draws.
    """
    likelihood = build(f"{name}(zero_inflation={gate})")
    z, offset = torch.randn(4, 3, 2, dtype=torch.float64), torch.tensor([0.0, 2.0, -1.0]).double()
    plain, law = (likelihood(z, **given).base_dist for given in ({}, {"offset": offset}))
    size = offset.exp().reshape(3, 1, 1, 1)
    gates = {"gate_logits": plain.gate_logits}
    if name == "Poisson":
        other = dist.ZeroInflatedPoisson(plain.base_dist.rate * size, **gates)
    else:
        count, logits = (
            plain.base_dist.total_count,
            plain.base_dist.logits + offset[:, None, None, None],
        )
        other = dist.ZeroInflatedNegativeBinomial(count, logits=logits, **gates)
    x = other.sample((20,))
    assert (x == 0).any() and (x > 0).any()
    torch.testing.assert_close(law.log_prob(x), other.log_prob(x))
    torch.testing.assert_close(law.mean, plain.mean * size)


def test_an_offset_is_a_field_of_the_data() -> None:
    """A condition of log p(x); with it the decoder is of a row of size 1, and starts there."""
    torch.manual_seed(0)
    offset = torch.tensor([0.0, 3.0]).repeat(30)
    x = torch.poisson(2.0 * offset.exp().unsqueeze(-1).expand(60, 4))
    net: dict[str, Any] = {"hidden": (4,), "output_bias": "mean"}
    model = models.GenerativeModel(models.StandardNormal(2), models.Poisson((4,), 2, **net))
    guide = guides.MeanField((4,), 2, hidden=(4,))
    quiet: dict[str, Any] = {"batch_size": 20, "progress": False, "compile": "off"}
    pv.fit(model, guide, x, offset=offset, num_steps=1, learning_rate=1e-9, **quiet)
    start = model.likelihood.net.last_bias()
    expected = x.double().mean(0) / offset.double().exp().mean()
    torch.testing.assert_close(nn.functional.softplus(start).double(), expected, rtol=1e-4, atol=0)
    found = pv.log_marginal(model, guide, x, num_samples=3, offset=offset)
    assert found.protocol["quantity"] == "log p(x | offset)"
    drawn = pv.sample(model, 60, torch.zeros(1, 4), mean=True, offset=offset)["x"]
    assert (drawn[1::2] > 5 * drawn[::2]).all()
    other = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli((4,), 2))
    with pytest.raises(UserError, match="Bernoulli has none: use a likelihood of counts"):
        pv.log_marginal(other, guide, x.clamp(max=1.0), num_samples=3, offset=offset)
    with pytest.raises(UserError, match="expected one finite number for each row"):
        pv.log_marginal(model, guide, x, num_samples=3, offset=offset.log())


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
def test_the_mean_is_the_sum_over_the_support(spec: str) -> None:
    """Σ P(x) = 1 and Σ x P(x) is ``mean``: what pictures show. By enumeration, or by a fine grid
    for a density.
    """
    law = law_of(spec)
    if law.support.is_discrete:
        top = {"Bernoulli": 2, "Poisson": 400, "NegativeBinomial": 4000}.get(
            specs.parse(spec).name, LEVELS
        )
        x, weight = torch.arange(top, dtype=torch.float64), torch.ones(top, dtype=torch.float64)
    elif spec == "ContinuousBernoulli":
        x, weight = (
            torch.linspace(0, 1, 20001, dtype=torch.float64),
            torch.full((20001,), 1 / 20000, dtype=torch.float64),
        )
        weight[[0, -1]] /= 2
    else:
        return  # against SciPy above
    mass = law.log_prob(x.reshape(-1, *[1] * len(law.batch_shape))).exp() * weight.reshape(
        -1, *[1] * len(law.batch_shape)
    )
    torch.testing.assert_close(
        mass.sum(0), torch.ones(law.batch_shape, dtype=torch.float64), rtol=0, atol=1e-7
    )
    torch.testing.assert_close((mass.movedim(0, -1) * x).sum(-1), law.mean, rtol=1e-6, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
def test_draws_have_the_law(spec: str) -> None:
    """4000 draws against the distribution function: by Kolmogorov and Smirnov for a density, by χ²
    for a mass.
    """
    law, number = law_of(spec, batch=()), 4000
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = law.sample((number,))
    assert x.dtype == torch.float64 and bool(law.support.check(x).all())
    draws = x[:, 0, 0, 0]
    if not law.support.is_discrete:
        line = torch.linspace(0, 1, 4001, dtype=torch.float64)
        if spec == "ContinuousBernoulli":
            density = law.log_prob(line.reshape(-1, 1, 1, 1))[:, 0, 0, 0].exp()
            cdf = torch.cumulative_trapezoid(density, line)
            assert (
                stats.kstest(
                    draws.numpy(), lambda v: np.interp(v, line[1:].numpy(), cdf.numpy())
                ).pvalue
                > 1e-4
            )
        else:
            other = scipy_law(spec, law)
            assert (
                stats.kstest(
                    draws.numpy(), lambda v: other.cdf(v.reshape(-1, 1, 1, 1))[:, 0, 0, 0]
                ).pvalue
                > 1e-4
            )
        return
    values, counts = draws.unique(return_counts=True)
    mass = law.log_prob(values.reshape(-1, 1, 1, 1))[:, 0, 0, 0].exp()
    often = mass * number > 5
    observed = torch.cat(
        (counts[often].double(), (number - counts[often].sum()).reshape(1).double())
    )
    expected = torch.cat(
        (number * mass[often], (number * (1 - mass[often].sum())).clamp(min=1e-9).reshape(1))
    )
    kept = expected > 5
    statistic = float(((observed - expected).square() / expected)[kept].sum())
    assert stats.chi2(max(int(kept.sum()) - 1, 1)).sf(statistic) > 1e-4


@torch.no_grad()
def test_a_discretized_logistic_is_a_difference_of_distribution_functions() -> None:
    """Against SciPy's logistic in float64, edge bins reaching to infinity; mixtures are their
    components' sum.
    """
    random = np.random.default_rng(0)
    for levels, components in ((2, 1), (17, 1), (256, 3)):
        loc, scale = (
            random.normal(size=(5, components)),
            np.exp(random.normal(-2, 1, (5, components))),
        )
        logits = random.normal(size=(5, components))
        edges = 2 * (np.arange(levels + 1) - 0.5) / (levels - 1) - 1
        edges[0], edges[-1] = -np.inf, np.inf
        mass = np.diff(stats.logistic(loc[..., None], scale[..., None]).cdf(edges), axis=-1)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        law = LogisticLevels(*map(torch.from_numpy, (loc, scale, logits)), levels)
        found = law.log_prob(torch.arange(levels, dtype=torch.float64).unsqueeze(-1)).exp().T
        np.testing.assert_allclose(
            found.numpy(), (shares[..., None] * mass).sum(1), rtol=1e-6, atol=1e-13
        )
        np.testing.assert_allclose(found.sum(-1).numpy(), 1, rtol=1e-12)


@torch.no_grad()
def test_far_bins_keep_their_digits_in_float32() -> None:
    """σ(a) − σ(b) is 0 in float32 from a = 17 on; its logarithm is a − b + … and has a gradient."""
    loc = torch.tensor([[-0.9], [0.9]])
    with torch.enable_grad():
        scale = torch.full((2, 1), 0.005, requires_grad=True)
        log_mass = LogisticLevels(loc, scale, torch.zeros(2, 1), 256).log_prob(
            torch.tensor([200.0, 20.0])
        )
        (gradient,) = torch.autograd.grad(log_mass.sum(), scale)
    exact = LogisticLevels(loc.double(), scale.detach().double(), torch.zeros(2, 1).double(), 256)
    torch.testing.assert_close(
        log_mass.double(), exact.log_prob(torch.tensor([200.0, 20.0]).double()), rtol=1e-5, atol=0
    )
    assert (
        bool((log_mass < -200).all())
        and bool(gradient.isfinite().all())
        and bool((gradient > 0).all())
    )


@pytest.mark.parametrize("logit", [-300.0, -30.0, -0.201, -0.199, 0.0, 1e-4, 3.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_continuous_bernoulli_is_a_truncated_exponential(
    logit: float, dtype: torch.dtype
) -> None:
    """log p(x) = l x + log(l / (e^l − 1)): at l = −30 torch's own has lost 47% of its mass in
    float32.
    """
    law = models.ContinuousBernoulli(1, (1,), hidden=())(torch.zeros(1)).base_dist
    law = type(law)(logits=torch.tensor(logit, dtype=dtype))
    x = np.linspace(0, 1, 9)
    norm = (
        0.0
        if logit == 0
        else math.log(abs(logit)) - math.log(-math.expm1(-abs(logit))) - max(logit, 0.0)
    )
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(
        law.log_prob(torch.from_numpy(x).to(dtype)).double(),
        logit * x + norm,
        rtol=tolerance,
        atol=tolerance,
    )
    if logit:
        exact = stats.truncexpon(abs(logit), scale=1 / abs(logit))
        mean = exact.mean() if logit < 0 else 1 - exact.mean()
        assert float(law.mean) == pytest.approx(mean, abs=1e-6 if dtype == torch.float32 else 1e-9)
        quantile = exact.ppf(0.3) if logit < 0 else 1 - exact.ppf(0.7)
        assert float(law.icdf(torch.tensor(0.3, dtype=dtype))) == pytest.approx(quantile, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_ratios_keep_their_digits(dtype: torch.dtype) -> None:
    """Γ(a + n) / Γ(a) = a (a + 1) … (a + n − 1), at any a; the difference of two lgammas is off by
    nats at a = 10⁶.
    """
    for a in (1e-3, 0.5, 9.9, 10.1, 1e3, 1e6, 1e12):
        for n in (0, 1, 16, 255):
            exact = math.fsum(math.log(a + k) for k in range(n))
            found = float(
                log_gamma_ratio(torch.tensor(a, dtype=dtype), torch.tensor(float(n), dtype=dtype))
            )
            assert found == pytest.approx(
                exact, rel=1e-5 if dtype == torch.float32 else 1e-12, abs=1e-6 if n else 1e-12
            )


@torch.no_grad()
def test_limits() -> None:
    """NB → Poisson and t → Gaussian in float32, at parameters where torch's own are off by nats;
    Binomial(1) is Bernoulli.
    """
    x = torch.tensor([0.0, 1.0, 5.0, 16.0]).reshape(4, 1, 1, 1)
    counts = build("NegativeBinomial(total_count=1e7)", torch.float32)(torch.ones(2))
    rate = counts.base_dist.mean
    torch.testing.assert_close(
        counts.base_dist.log_prob(x), dist.Poisson(rate).log_prob(x), rtol=1e-4, atol=1e-4
    )
    heavy = build("StudentT(df=1e7)", torch.float32)(torch.ones(2)).base_dist
    light = dist.Normal(heavy.loc, heavy.scale)
    torch.testing.assert_close(heavy.log_prob(x / 16), light.log_prob(x / 16), rtol=1e-4, atol=1e-4)
    binary = build("Binomial", torch.float32, levels=2)(torch.ones(2)).base_dist
    torch.testing.assert_close(
        binary.log_prob(x[:2]), dist.Bernoulli(logits=binary.logits).log_prob(x[:2])
    )


@pytest.mark.parametrize("spec", SPECS)
def test_log_probs_are_staged(spec: str) -> None:
    """Traced with validation off, replayed at another z and x, the log density is the eager one:
    nothing was read.
    """
    part = build(spec)
    z, x = torch.randn(4, 2).double(), part(torch.randn(4, 2).double()).sample()
    with validation(distributions=False):
        graph = make_fx(lambda z, x: part(z).log_prob(x))(z, x)
        other_z, other_x = torch.randn(4, 2).double(), part(torch.randn(4, 2).double()).sample()
        torch.testing.assert_close(graph(other_z, other_x), part(other_z).log_prob(other_x))


WRONG = {
    "Binomial": [(3.5, "whole numbers"), (17.0, "levels=…"), (-1.0, "levels=…")],
    "Categorical": [(3.5, "whole numbers"), (17.0, "levels=…")],
    "DiscretizedLogistic": [(0.25, "whole numbers"), (17.0, "levels=…")],
    "Poisson": [(0.25, "whole numbers"), (-1.0, "whole numbers")],
    "NegativeBinomial": [(0.25, "whole numbers")],
    "ContinuousBernoulli": [(1.5, r"scale the images to \[0, 1\]"), (-0.1, "scale")],
}


@pytest.mark.parametrize(
    ("spec", "value", "words"), [(s, v, w) for s, found in WRONG.items() for v, w in found]
)
@pytest.mark.parametrize("place", [0, 6])
def test_values_outside_the_support_are_named(
    spec: str, value: float, words: str, place: int
) -> None:
    """In the first images, which the dry run sees, and in the others."""
    model = models.GenerativeModel(models.StandardNormal(2), build(spec, torch.float32))
    guide = guides.MeanField(SHAPE, 2, hidden=(4,))
    x = torch.ones(8, *SHAPE)
    x[place, 0, 0, 0] = value
    with pytest.raises(
        UserError, match=rf"the value {value:g} is outside the support of {spec}: .*{words}"
    ) as error:
        pv.log_marginal(model, guide, x, num_samples=2, device="cpu", compile="off")
    assert "\n" not in str(error.value)


# ---- starting at a mean


@torch.no_grad()
@pytest.mark.parametrize(
    ("spec", "net"),
    thinned(SPECS, ["MLP(hidden=(4,), output_bias=mean)", "Conv(channels=(3,), output_bias=mean)"]),
)
def test_a_decoder_starts_at_the_mean(spec: str, net: str) -> None:
    """With the last layer's weights at 0, p(x | z) has the mean that is not in the table, whatever
    z is.
    """
    part = build(spec, net=net)
    assert part.waits_for_data
    highest = 1.0 if part.observes in ("binary", "unit", "real") else LEVELS - 1.0
    mean = highest * torch.tensor([0.02, 0.1, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64).reshape(
        SHAPE
    )
    part.start_at_mean(mean)
    assert not part.waits_for_data
    last = [layer for layer in part.net.modules() if hasattr(layer, "weight")][-1]
    last.weight.zero_()
    torch.testing.assert_close(
        part.eval()(torch.randn(5, 2).double()).mean, mean.expand(5, *SHAPE), rtol=1e-6, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
def test_a_pixel_that_never_varies_gives_a_finite_start(spec: str) -> None:
    part = build(spec, net="MLP(hidden=(), output_bias=mean)")
    for mean in (
        torch.zeros(SHAPE),
        torch.full(SHAPE, 1.0 if part.observes != "levels" else LEVELS - 1.0),
    ):
        part.start_at_mean(mean)
        assert bool(part.net.last_bias().isfinite().all())


def test_a_start_needs_the_images_shape_and_a_likelihood_that_knows() -> None:
    part = build("Bernoulli")
    with pytest.raises(UserError, match=r"shape \(6,\): expected that of one image, \(1, 2, 3\)"):
        part.start_at_mean(torch.zeros(6))
    with pytest.raises(UserError, match="one bias a channel: build it with output_bias=mean"):
        build("Bernoulli", net="Conv(channels=(3,))").start_at_mean(torch.zeros(SHAPE))

    class Mine(models.Bernoulli):
        outputs_at_mean = pv.nn.conditional.Likelihood.outputs_at_mean  # type: ignore[attr-defined]

    with pytest.raises(UserError, match="Mine does not know which decoder outputs"):
        Mine(2, SHAPE, hidden=()).start_at_mean(torch.zeros(SHAPE))


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        ("Bernoulli", lambda x: x / 16),
        ("Gaussian", lambda x: (x + 0.5) / 17),
        ("Binomial", lambda x: x),
    ],
)
def test_the_command_line_starts_at_what_is_observed(likelihood: str, expected: Any) -> None:
    """The mean of binarized, dequantized or integer images that are trained on, not of those held
    out.
    """
    experiment = prepare(
        Train(likelihood=likelihood, net="MLP(hidden=(4,), init=glorot, output_bias=mean)")
    )
    still: dict[str, Any] = {
        "num_steps": 1,
        "learning_rate": 1e-12,
        "progress": False,
        "device": "cpu",
        "compile": "off",
    }
    pv.fit(
        experiment.model,
        experiment.guide,
        experiment.x_train,
        binarize=experiment.observed.observe,
        **still,
    )
    mean = expected(experiment.data.train[experiment.train_rows].double()).mean(0)
    (found,) = experiment.model.likelihood.outputs_at_mean(mean)
    torch.testing.assert_close(
        experiment.model.likelihood.net.last_bias().double(), found, rtol=1e-5, atol=1e-5
    )
    observed = experiment.observed
    if observed.observe is not None:  # the expectation is that of the draws
        random = torch.Generator().manual_seed(0)
        draws = torch.stack(
            [observed.observe(observed.x_train[:200], random).double().mean() for _ in range(50)]
        )
        exact = observed.observe.expected(observed.x_train[:200]).double().mean()
        assert float((draws.mean() - exact).abs()) < 5 * float(draws.std()) / 50**0.5


# ---- levels


def test_the_data_fill_the_levels_and_scale_the_encoder() -> None:
    options = Train(likelihood="Binomial", net="MLP(hidden=(4,))")
    experiment = prepare(options)
    assert experiment.model.likelihood.levels == 17 and experiment.guide.net.input_scale == 16
    assert experiment.model.likelihood.net.input_scale == 1
    model, guide = build_pair(options, (1, 8, 8), 100, levels=256)
    assert model.likelihood.levels == 256 and guide.net.input_scale == 255
    assert prepare(Train(likelihood="Gaussian")).guide.net.input_scale == 1
    binarized = prepare(Train(likelihood="Binomial", binarize="static", net="MLP(hidden=(4,))"))
    assert binarized.model.likelihood.levels == 2 and binarized.guide.net.input_scale == 1
    assert int(binarized.observed.x_test.max()) == 1


def test_other_levels_than_the_datas_are_refused() -> None:
    with pytest.raises(
        UserError,
        match="the likelihood is for 256 levels, but digits has 17: write levels=17",
    ):
        prepare(Train(likelihood="Categorical(levels=256)", net="MLP(hidden=(4,))"))


def test_an_encoder_divides_its_input() -> None:
    """``input_scale`` changes what the network sees and nothing else."""
    x = torch.rand(5, *SHAPE)
    for net in ({"hidden": (4,)}, {"net": "Conv", "channels": (3,)}):
        torch.manual_seed(0)
        plain = guides.MeanField(SHAPE, 2, **net).eval()
        torch.manual_seed(0)
        scaled = guides.MeanField(SHAPE, 2, input_scale=16, **net).eval()
        torch.testing.assert_close(scaled.local(16 * x), plain.local(x))


def test_likelihoods_are_compared_within_a_kind_and_one_observation() -> None:
    """Binomial and Poisson on the same levels, yes; a density with a mass, or binary with levels,
    no.
    """
    data = load("digits")
    found = {}
    for spec in ("Binomial", "Poisson", "Gaussian", "StudentT", "Bernoulli"):
        part = build(spec, torch.float32, event_shape=(1, 8, 8))
        seen = observe(data, "auto", part.observes)
        pair = (
            models.GenerativeModel(models.StandardNormal(2), part),
            guides.MeanField((1, 8, 8), 2, hidden=(4,)),
        )
        protocol = {"observation": seen.protocol["observation"]}
        found[spec] = pv.log_marginal(
            *pair, seen.x_test[:20], 5, protocol=protocol, device="cpu", compile="off"
        )
    compare({name: found[name] for name in ("Binomial", "Poisson")})
    compare({name: found[name] for name in ("Gaussian", "StudentT")})
    for name in ("Gaussian", "Bernoulli"):
        with pytest.raises(UserError, match=r"different x|within a kind"):
            compare({"Binomial": found["Binomial"], name: found[name]})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("Binomial(levels=1)", "levels=1"),
        ("Categorical(levels=2.5)", "levels=2.5"),
        ("DiscretizedLogistic(components=0)", "components=0"),
        ("DiscretizedLogistic(levels=0)", "levels=0"),
        ("NegativeBinomial(total_count=lerned)", "did you mean 'learned'"),
        ("NegativeBinomial(total_count=-1)", "must be positive"),
        ("StudentT(df=0)", "must be positive"),
        ("StudentT(df=lerned)", "did you mean 'learned'"),
        ("StudentT(scale=wide)", "scale of StudentT"),
        ("Gaussian(scale=0)", "must be positive"),
    ],
)
def test_refusals_are_a_line(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build(spec)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_median_stands_in_for_a_mean_that_is_none() -> None:
    """Pictures of a Cauchy show its location."""
    part = build("StudentT(df=1)", torch.float32)
    z: Tensor = torch.randn(4, 2)
    assert torch.equal(part(z).mean, part.net(z))
