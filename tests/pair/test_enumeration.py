"""Discrete latents that the guide lacks are summed out: exactly, by every objective and layout, or
refused in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.analysis.mutual_information import mutual_information
from pyro_vae.choices import lookup, registry
from pyro_vae.objectives import Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.pair.enumeration import conditionals
from pyro_vae.pair.layouts import LAYOUTS
from pyro_vae.pair.log_weights import log_densities
from pyro_vae.pair.runtime import Pair

D = torch.float64
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=D)
PLACES = torch.tensor([-2.0, 0.3, 1.5], dtype=D)
S, T = 0.7, 0.6  # of z | c, of x | z
X = 1.5 * torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=D)


def two_pixels(loc: Tensor) -> Any:
    """N(loc, T²) twice, independently."""
    return dist.Normal(loc.unsqueeze(-1).expand(*loc.shape, 2), T).to_event(1)


class Mixture(PyroModule):
    """c ~ Categorical, z | c ~ N(μ_c, S²), x | z, c, two pixels: with parameters, as the gradients
    are compared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.places = nn.Parameter(SHARES.log()), nn.Parameter(PLACES.clone())
        self.slope = nn.Parameter(torch.tensor(0.4, dtype=D))

    def forward(self, x: Tensor) -> None:
        """p(c, z, x)."""
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.places[c], S))
            loc = torch.stack(torch.broadcast_tensors(z, self.slope * c), -1)
            pyro.sample("x", dist.Normal(loc, T).to_event(1), obs=x)


class Guide(PyroModule):
    """q(z | x), without c."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.log_scale = (
            nn.Parameter(torch.tensor(0.8, dtype=D)),
            nn.Parameter(torch.tensor(-0.3, dtype=D)),
        )

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x[:, 0], self.log_scale.exp()))


def nothing(x: Tensor) -> None:
    """An empty guide."""


def guide_of_z(x: Tensor) -> None:
    """q(z | x), without parameters."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * x[:, 0], 0.9))


def two_classes(x: Tensor) -> None:
    """Two discrete sites: one before z, one that depends on z and on the first."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(SHARES))
        z = pyro.sample("z", dist.Normal(PLACES[c], S))
        b = pyro.sample("b", dist.Bernoulli(logits=z - 0.25 * c))
        pyro.sample("x", two_pixels(z + b), obs=x)


def pixel_plate(x: Tensor) -> None:
    """Pixels along a plate of their own, to the left of the data plate, and a second observation
    before them.
    """
    pixels = pyro.plate("pixels", 2, dim=-2)
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("first", dist.Normal(PLACES[c], 1.0), obs=x[:, 0])
        z = pyro.sample("z", dist.Normal(0.1, S))
        with pixels:
            pyro.sample("x", dist.Normal(PLACES[c] + z, T), obs=x.T)


def after_z(x: Tensor) -> None:
    """A class drawn given z, whose own prior it leaves alone."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
        c = pyro.sample("c", dist.Categorical(logits=torch.stack((z, -z, 0 * z), -1)))
        pyro.sample("x", two_pixels(z + PLACES[c]), obs=x)


def classes_alone(x: Tensor) -> None:
    """A mixture without a continuous latent."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", two_pixels(PLACES[c]), obs=x)


def subsampled(x: Tensor) -> None:
    """The same, under a plate of 90 images."""
    with pyro.plate("data", 90, subsample=torch.arange(len(x))):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", two_pixels(PLACES[c]), obs=x)


CASES: dict[str, tuple[Any, Any, int]] = {  # model, guide, plates
    "a mixture": (classes_alone, nothing, 1),
    "a mixture VAE": (Mixture(), Guide(), 1),
    "two sites": (two_classes, guide_of_z, 1),
    "a pixel plate": (pixel_plate, guide_of_z, 2),
    "a site after z": (after_z, guide_of_z, 1),
    "a subsampling plate": (subsampled, nothing, 1),
}


# ---- Pyro's numbers


CLOSED = (
    "a pixel plate",
    "a site after z",
)  # the prior of z has no class in it, so that its KL is closed


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        *((name, Trace_ELBO) for name in CASES),
        *((name, TraceMeanField_ELBO) for name in CASES if name not in CLOSED),
    ],
)
def test_the_loss_is_that_of_trace_enum_elbo(name: str, objective: Any) -> None:
    """To all digits, at the same draws of z, where no KL is closed."""
    model, guide, plates = CASES[name]
    assert objective is Trace_ELBO or not Pair.of(model, guide).structure(X, {}).analytic
    for seed in range(3):
        torch.manual_seed(seed)
        mine = float(objective()(model, guide)(X).detach())
        torch.manual_seed(seed)
        theirs = infer.TraceEnum_ELBO(max_plate_nesting=plates).loss(
            infer.config_enumerate(model), guide, X
        )
        assert mine == pytest.approx(theirs, rel=1e-13)


def test_the_gradient_is_that_of_trace_enum_elbo() -> None:
    model, guide = Mixture(), Guide()
    Pair.of(model, guide).structure(X, {})
    parameters = [*model.parameters(), *guide.parameters()]
    torch.manual_seed(1)
    mine = torch.autograd.grad(Trace_ELBO()(model, guide)(X), parameters)
    torch.manual_seed(1)
    loss = infer.TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        infer.config_enumerate(model), guide, X
    )
    torch.testing.assert_close(mine, torch.autograd.grad(loss, parameters), rtol=1e-12, atol=1e-13)


class ByHand(PyroModule):
    """`Mixture` with its class integrated out on paper: p(z) is a mixture, and so is p(x | z), with
    shares p(c | z).
    """

    def __init__(self, of: Mixture) -> None:
        super().__init__()
        self.logits, self.places, self.slope = of.logits, of.places, of.slope

    def forward(self, x: Tensor) -> None:
        """p(z, x)."""
        parts = dist.Normal(self.places, S)
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)
            )
            shares = self.logits.log_softmax(-1) + parts.log_prob(z.unsqueeze(-1))
            loc = torch.stack(
                torch.broadcast_tensors(z.unsqueeze(-1), self.slope * torch.arange(3)), -1
            )
            given = dist.Normal(loc, T).to_event(1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=shares), given), obs=x)


@pytest.mark.parametrize("name", lookup.members("objective"))
def test_every_objective_sees_the_model_that_was_summed_on_paper(name: str) -> None:
    """The same loss and the same gradients, at the same draws and at a KL weight."""
    model, guide = Mixture(), Guide()
    parameters = [*model.parameters(), *guide.parameters()]
    found = []
    for written in (model, ByHand(model)):
        loss = registry.build("objective", name)(written, guide)
        loss.kl_weight.fill_(0.7)
        loss.pair.structure(X, {})
        loss.pair.layout(X, {})
        torch.manual_seed(2)
        value = loss(X)
        found.append([value.detach(), *torch.autograd.grad(value, parameters)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


def test_the_sum_is_the_one_by_hand() -> None:
    """log Σ_{c, b} p(c) p(z | c) p(b | z, c) p(x | z, b), term by term."""
    torch.manual_seed(0)
    terms = log_densities(two_classes, guide_of_z, X, 7)
    z = terms.guide["z"].value
    parts = []
    for c, b in product(range(3), (0.0, 1.0)):
        lp = SHARES[c].log() + dist.Normal(PLACES[c], S).log_prob(z)
        lp = lp + dist.Bernoulli(logits=z - 0.25 * c).log_prob(torch.tensor(b, dtype=D))
        parts.append(lp + dist.Normal((z + b).unsqueeze(-1), T).log_prob(X).sum(-1))
    log_q = dist.Normal(0.8 * X[:, 0], 0.9).log_prob(z)
    torch.testing.assert_close(
        terms.log_weights(), torch.stack(parts).logsumexp(0) - log_q, rtol=1e-13, atol=1e-13
    )


def test_each_site_that_remains_is_given_those_before_it() -> None:
    """The prior is the mixture p(z), the likelihood p(x | z), and the site that was summed out is
    nowhere.
    """
    torch.manual_seed(0)
    terms = log_densities(Mixture(), Guide(), X, 5)
    z = terms.guide["z"].value
    joint = SHARES.log() + dist.Normal(PLACES, S).log_prob(z.unsqueeze(-1))  # (5, 9, 3)
    torch.testing.assert_close(
        terms.prior["z"].log_prob, joint.logsumexp(-1), rtol=1e-13, atol=1e-13
    )
    given = dist.Normal(0.4 * torch.arange(3, dtype=D), T).log_prob(X[:, 1:]) + dist.Normal(
        z, T
    ).log_prob(X[:, 0]).unsqueeze(-1)
    expected = (joint.softmax(-1).log() + given).logsumexp(-1)
    torch.testing.assert_close(terms.observed["x"].log_prob, expected, rtol=1e-12, atol=1e-12)
    assert (terms.prior.keys(), terms.observed.keys(), terms.model_order) == (
        {"z"},
        {"x"},
        ("z", "x"),
    )


def test_a_latent_that_no_class_allows_has_no_probability() -> None:
    """log p(z) = −∞ for one draw of two: so is log p(z, x), and not −∞ + ∞."""
    class_ = torch.tensor([0.5, 0.5], dtype=D).log().reshape(2, 1, 1)
    z = torch.tensor([[-1.0, -torch.inf], [-2.0, -torch.inf]], dtype=D).unsqueeze(-1)
    x = torch.tensor([[-3.0, -0.1], [-4.0, -0.2]], dtype=D).unsqueeze(-1)
    found = conditionals({"c": class_, "z": z, "x": x}, {"c"})
    expected = (class_ + z + x).logsumexp(0)
    torch.testing.assert_close(found["z"] + found["x"], expected, rtol=1e-14, atol=0)
    assert bool(expected[0].isfinite()) and bool(expected[1] == -torch.inf)


# ---- layouts, staging, evaluation


@pytest.mark.parametrize("name", [name for name in CASES if name != "a subsampling plate"])
def test_every_layout_gives_the_same_terms(name: str) -> None:
    model, guide, _ = CASES[name]
    pair = Pair.of(model, guide)
    with pair.probing():
        pair.structure(X, {})
        found = {}
        for layout in LAYOUTS:
            if layout == "rows" and name == "a pixel plate":
                # x.T on flattened rows of K·B images: this model is right there too, its plates are
                # not
                continue
            torch.manual_seed(0)
            found[layout] = pair.run(X, {}, 4, layout).log_weights()
    for layout, weights in found.items():
        assert weights.shape == (4, len(X))
        torch.testing.assert_close(weights, found["repeat"], rtol=1e-12, atol=1e-12, msg=layout)
    assert pair.layout(X, {}) == "plate"


def conjugate() -> tuple[Any, Any, Tensor]:
    """z | c ~ N(μ_c, S²), x | z ~ N(z, T²): log p(x) is that of a mixture of N(μ_c, S² + T²)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(SHARES))
            z = pyro.sample("z", dist.Normal(PLACES[c], S))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), T).to_event(1), obs=x)

    log_px = (
        SHARES.log() + dist.Normal(PLACES, (S**2 + T**2) ** 0.5).log_prob(X[:, :1])
    ).logsumexp(-1)
    return model, guide_of_z, log_px


@pytest.mark.parametrize("proposal", ["guide", "Defensive", "Prior"])
def test_importance_sampling_finds_the_exact_number(proposal: str) -> None:
    model, guide, log_px = conjugate()
    result = pv.log_marginal(
        model, guide, X[:, :1], num_samples=4000, proposal=proposal, compile="off"
    )
    z = (result.log_px - log_px) / result.se
    assert float(z.abs().max()) < 4.5 and 0 < result.se_mc < 0.02


def test_ais_anneals_to_the_summed_target() -> None:
    model, guide, log_px = conjugate()
    result = pv.ais(model, guide, X[:, :1], num_steps=40, num_chains=8, compile="graph")
    assert abs(result.mean - float(log_px.mean())) < 5 * result.se_mc + 1e-3


@pytest.mark.parametrize("name", ["a mixture VAE", "two sites"])
def test_staged_evaluation_is_the_eager_one(name: str) -> None:
    model, guide, _ = CASES[name]
    runs = [
        pv.log_marginal(model, guide, X, num_samples=60, compile=tier, device="cpu").log_px
        for tier in ("off", "graph")
    ]
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", ["Trace_ELBO", "TraceMeanField_ELBO"])
def test_staged_training_is_the_eager_one(objective: str) -> None:
    """The same parameters after 12 steps, and the loss falls."""
    found = {}
    for tier in ("off", "graph"):
        model, guide = Mixture(), Guide()
        history = pv.fit(
            model, guide, X.repeat(4, 1), objective=objective, num_epochs=3, batch_size=9, learning_rate=0.05,
            compile=tier, device="cpu", progress=False,
        )  # fmt: skip
        assert history.compile == tier
        assert history.train[-1].loss < history.train[0].loss
        found[tier] = torch.cat(
            [p.detach().flatten() for p in (*model.parameters(), *guide.parameters())]
        )
    torch.testing.assert_close(found["off"], found["graph"], rtol=1e-10, atol=1e-10)


# ---- nothing left to draw


class Classes(PyroModule):
    """A mixture with parameters, whose log p(x) can be had by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.places = nn.Parameter(SHARES.log()), nn.Parameter(PLACES.clone())

    def forward(self, x: Tensor) -> None:
        """p(c, x)."""
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits))
            pyro.sample("x", two_pixels(self.places[c]), obs=x)

    def log_px(self, x: Tensor) -> Tensor:
        """log Σ_c π_c N(x; μ_c, T²)."""
        given = dist.Normal(self.places, T).log_prob(x.unsqueeze(-1)).sum(1)
        return (self.logits.log_softmax(-1) + given).logsumexp(-1)


@pytest.mark.parametrize("name", lookup.members("objective"))
def test_every_objective_is_maximum_likelihood_where_no_latent_is_drawn(name: str) -> None:
    """All of its weights are p(x): its bound is log p(x), and its gradient that of log p(x)."""
    model = Classes()
    goal = registry.build("objective", name)
    pair = Pair.of(model, nothing)
    structure = pair.structure(X, {})
    try:
        goal.check(structure)
    except pv.UserError as refusal:
        assert len(str(refusal).splitlines()) == 1
        return
    loss, exact = goal(model, nothing)(X), -model.log_px(X).sum()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-12)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(exact, parameters)
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("num_samples", [1, 2, 5000])
def test_the_number_is_exact(num_samples: int) -> None:
    """No Monte Carlo error, at K = 1 as well, nothing to warn of, and the headline says so."""
    model = Classes()
    result = pv.log_marginal(model, nothing, X, num_samples=num_samples, compile="off")
    torch.testing.assert_close(result.log_px, model.log_px(X).detach(), rtol=1e-13, atol=1e-13)
    assert (
        result.exact
        and result.se_mc == result.bias == 0.0
        and result.lower95 == result.mean == result.elbo
    )
    assert (
        result.warnings == ()
        and result.protocol["estimator"] == "exact"
        and "proposal" not in result.protocol
    )
    assert "log p(x) = " in str(result) and set(result.per_image()["flag"]) == {""}
    assert result.curve.keys() == {max(1, num_samples // 10), max(1, num_samples // 2), num_samples}
    assert list(result.curve.values()) == pytest.approx([result.mean] * len(result.curve))


def test_the_prior_draws_the_classes_too() -> None:
    """Naive Monte Carlo stays what it is, and is not called exact."""
    model = Classes()
    result = pv.log_marginal(model, nothing, X, num_samples=4000, proposal="prior", compile="off")
    assert not result.exact
    far = (result.log_px - model.log_px(X)).abs() / result.se
    assert float(far.detach().max()) < 4.5


def test_reconstructions_are_averaged_over_the_classes() -> None:
    """Σ_c p(c | x) E[x | c], not the mean at a class that the prior happens to draw."""
    model = Classes()
    with torch.no_grad():
        joint = model.logits.log_softmax(-1) + dist.Normal(model.places, T).log_prob(
            X.unsqueeze(-1)
        ).sum(1)
        expected = (joint.softmax(-1) @ model.places).unsqueeze(-1).expand(-1, 2)
    torch.testing.assert_close(
        pv.reconstruct(model, nothing, X, device="cpu")["x"], expected, rtol=1e-12, atol=1e-12
    )
    assert pv.encode(model, nothing, X, device="cpu") == {}
    # with a pixel plate left of the images' own
    found = pv.reconstruct(pixel_plate, guide_of_z, X, device="cpu")
    assert found["x"].shape == (9, 2) and found["first"].shape == (9,)
    z = 0.8 * X[:, :1]
    weights = (SHARES.log() + dist.Normal(PLACES, 1.0).log_prob(X[:, :1])).unsqueeze(1)
    given = dist.Normal(PLACES + z.unsqueeze(-1), T).log_prob(X.unsqueeze(-1)).sum(1, keepdim=True)
    mean = ((weights + given).softmax(-1) * PLACES).sum(-1) + z
    torch.testing.assert_close(found["x"], mean.expand(-1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("call", [pv.diagnose, mutual_information, pv.sbc_ranks, pv.ais, pv.refine])
def test_what_needs_a_latent_says_that_there_is_none(call: Callable[..., Any]) -> None:
    wanted = {"size": 20, "like": X} if call is pv.sbc_ranks else {"x": X}
    with pytest.raises(pv.UserError) as refusal:
        call(model=classes_alone, guide=nothing, **wanted, device="cpu")
    assert (
        len(str(refusal.value).splitlines()) == 1 and "log" in str(refusal.value)
    ) or call is pv.refine


def test_diagnoses_of_a_mixture_prior() -> None:
    """The rate is log q − log p(z) with p(z) the mixture: on average what importance sampling has
    for it.
    """
    torch.manual_seed(0)
    found = pv.diagnose(Mixture(), Guide(), X, num_draws=400, device="cpu")
    terms = log_densities(Mixture(), Guide(), X, 4000)
    rate = (terms.guide["z"].log_prob - terms.prior["z"].log_prob).mean().detach()
    assert float(found.rate_distortion.rate) == pytest.approx(float(rate), abs=0.05)
    assert "mixture over 'c'" in found.kl.how["z"]


# ---- what is said, and what is refused


def test_check_pair_tells_what_is_summed_out() -> None:
    report = pv.check_pair(two_classes, guide_of_z, X)
    said = str(report)
    assert "latent sites: z\n" in said
    assert "summed out: 'c', 3 values (it is not in the guide)\nsummed out: 'b', 2 values" in said
    assert (
        "KL of 'z': sampled, because its prior is a mixture over 'c', 'b', which is summed out"
        in said
    )
    assert pv.check_pair(after_z, guide_of_z, X).structure.analytic == (
        "z",
    )  # its prior has no c in it


def bad(site: Any) -> Callable[[Tensor], None]:
    """A model with this distribution at its site c."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", site)
            pyro.sample("x", two_pixels(torch.zeros(len(x), dtype=D)), obs=x)

    return model


def concatenated(x: Tensor) -> None:
    """As a model is written that was never run with all classes at once."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(SHARES))
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat((z, c), -1)[..., :2], T).to_event(1), obs=x)


def guide_of_two(x: Tensor) -> None:
    """q(z | x) of two dimensions."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.9).to_event(1))


def chain(x: Tensor) -> None:
    """A Markov chain, whose dimensions Pyro recycles."""
    with pyro.plate("data", len(x)):
        c: Any = 0
        for t in pyro.markov(range(3)):
            c = pyro.sample(f"c{t}", dist.Bernoulli(0.3 + 0.4 * torch.as_tensor(c, dtype=D)))
        pyro.sample("x", two_pixels(c), obs=x)


def in_a_plate(x: Tensor) -> None:
    """A class for each pixel, along a plate."""
    with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 2, dim=-2):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
        pyro.sample("x", dist.Normal(c, T), obs=x.T)


def scaled(x: Tensor) -> None:
    """A class that is scaled where the image is not."""
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=0.5):
            c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", two_pixels(PLACES[c]), obs=x)


def test_what_is_summed_together_is_scaled_together_or_refused() -> None:
    """s log Σ_c p(c) p(x | c) of any s; of a scale on one of the two there is no such sum."""

    def model(of_c: float, of_x: float) -> Callable[[Tensor], None]:
        def scaled(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=of_c):
                    c = pyro.sample("c", dist.Categorical(SHARES))
                with poutine.scale(scale=of_x):
                    pyro.sample("x", two_pixels(PLACES[c]), obs=x)

        return scaled

    whole = Trace_ELBO()(model(1.0, 1.0), nothing)(X)
    torch.testing.assert_close(Trace_ELBO()(model(0.3, 0.3), nothing)(X), 0.3 * whole)
    for scales in ((1.0, 0.3), (0.3, 1.0)):
        with pytest.raises(
            pv.UserError,
            match=r"'c' and 'x' of the model are scaled by .* but c is summed out of both",
        ):
            Trace_ELBO()(model(*scales), nothing)(X)


def masked_site(x: Tensor) -> None:
    """A class that some images do not have."""
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x[:, 0] > 0):
            c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", two_pixels(PLACES[c]), obs=x)


BAD: dict[str, tuple[Any, Any, str]] = {
    "a continuous site": (bad(dist.Normal(X.new_zeros(()), 1.0)), nothing, "'c' is missing in the guide"),
    "no finite support": (bad(dist.Poisson(X.new_ones(()))), nothing, "no finite list of values"),
    "a joint event": (bad(dist.Bernoulli(X.new_full((4,), 0.5)).to_event(1)), nothing, "one site for each"),
    "a plate within": (in_a_plate, nothing, "plate 'pixels'"),
    "torch.cat": (concatenated, guide_of_two, "broadcast_tensors before torch.cat"),
    "a Markov chain": (chain, nothing, "pyro.markov"),
    "a mask": (masked_site, nothing, "is masked"),
    "a scale of its own": (scaled, nothing, "give both the same scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_summed_is_refused(name: str) -> None:
    """In one line, in training and evaluation alike."""
    model, guide, words = BAD[name]
    for call in (
        lambda: pv.fit(model, guide, X, num_steps=1, device="cpu", progress=False),
        lambda: pv.log_marginal(model, guide, X, num_samples=5, device="cpu"),
    ):
        with pytest.raises(pv.UserError, match=words) as refusal:
            call()
        assert len(str(refusal.value).splitlines()) == 1


def test_a_subsampling_plate_has_no_log_px() -> None:
    with pytest.raises(pv.UserError, match="subsamples"):
        pv.log_marginal(subsampled, nothing, X, num_samples=5, device="cpu")


def test_values_are_rows_of_the_model() -> None:
    """A tile of images is smaller by the number of classes, and log p(x) does not depend on it."""
    model = Classes()
    many = X.repeat(500, 1)
    result = pv.log_marginal(model, nothing, many, num_samples=3, compile="off")
    torch.testing.assert_close(result.log_px, model.log_px(many).detach(), rtol=1e-13, atol=1e-13)
    assert replace(result, notes=()).num_images == 4500
