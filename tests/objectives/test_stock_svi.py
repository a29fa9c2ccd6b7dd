"""Our objectives under `pyro.infer.SVI`: Pyro's contract, Pyro's store, Pyro's numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import UserError, fit, log_marginal, objectives
from pyro_vae.choices import lookup, registry
from pyro_vae.data.loaders import make_source
from pyro_vae.objectives import IWAE, STL, Objective, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from tests.support.pairs import (
    LATENT,
    PIXELS,
    Decoder,
    Encoder,
    Guide,
    Model,
    TutorialVAE,
    binary_images,
)

X = binary_images(24).double()
NAMES = sorted(lookup.members("objective"))
BOTH = [(Trace_ELBO(), infer.Trace_ELBO), (TraceMeanField_ELBO(), infer.TraceMeanField_ELBO)]


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    """Pyro's global store, for each test alone."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


class OtherName(Guide):
    """The guide, its network called otherwise than the model's: Pyro's store knows a parameter by
    its name alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.net
        del self.net

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate(self.plate, x.shape[0]):
            pyro.sample("z", dist.Normal(*self.inner(x)).to_event(1))


def modules() -> tuple[Any, Any]:
    """Two PyroModules."""
    return Model().double(), OtherName().double()


def methods() -> tuple[Any, Any]:
    """Two methods of one nn.Module."""
    vae = TutorialVAE().double()
    return vae.model, vae.guide


def functions() -> tuple[Any, Any]:
    """Functions with pyro.module, and with pyro.params: constrained, shared, and drawn at their
    creation.
    """
    decoder, encoder = Decoder().double(), Encoder().double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        shift = pyro.param("shift", lambda: 0.1 * torch.randn(PIXELS, dtype=torch.float64))
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z) + shift).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        widen = pyro.param(
            "widen", torch.tensor(0.9, dtype=torch.float64), constraint=constraints.positive
        )
        pyro.param("shift", lambda: torch.randn(PIXELS, dtype=torch.float64))
        with pyro.plate("images", x.shape[0]):
            loc, scale = encoder(x)
            pyro.sample("z", dist.Normal(loc, scale * widen).to_event(1))

    return model, guide


FORMS = [modules, methods, functions]


def made(make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The pair with the same networks at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def stepped(
    make: Callable[[], tuple[Any, Any]], loss: Any, x: Tensor = X, steps: int = 5
) -> tuple[Any, ...]:
    """The losses, the store and the random state after some steps of stock SVI."""
    pyro.clear_param_store()
    svi = infer.SVI(*made(make), pyro.optim.Adam({"lr": 0.02}), loss=loss)
    torch.manual_seed(1)
    losses = [svi.step(x) for _ in range(steps)]
    return (
        losses,
        {name: value.detach().clone() for name, value in pyro.get_param_store().items()},
        torch.rand(1),
    )


def assert_equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    """The same losses, parameters by the same names, and random numbers used."""
    assert a[0] == pytest.approx(b[0], rel=1e-12) and all(type(value) is float for value in a[0])
    assert list(a[1]) == list(b[1])
    for name, value in a[1].items():
        torch.testing.assert_close(value, b[1][name], rtol=1e-12, atol=1e-12)
    assert torch.equal(a[2], b[2])


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_pyros_elbo_and_a_value(name: str) -> None:
    """Reprs are on disk, and read back; equal settings are one key."""
    goal = registry.build("objective", name)
    assert isinstance(goal, infer.ELBO) and isinstance(goal, getattr(objectives, name))
    again = registry.build("objective", repr(goal))
    assert (
        again == goal
        and hash(again) == hash(goal)
        and not vars(goal).keys() - set(goal.__dataclass_fields__)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("mine", "theirs"), BOTH, ids=["sampled", "closed"])
def test_steps_of_svi_are_pyros_own(
    form: Callable[[], tuple[Any, Any]], mine: Objective, theirs: Any
) -> None:
    """Parameters, their names and order, losses, and the random numbers that were used: the dry run
    leaves no mark.
    """
    assert_equal(stepped(form, mine), stepped(form, theirs()))


@pytest.mark.parametrize("form", FORMS)
def test_iwae_is_pyros_renyi_at_zero_of_one_image(form: Callable[[], tuple[Any, Any]]) -> None:
    """Pyro sums the images before the logarithm: of one image both are the same bound, in the same
    noise.
    """
    theirs = infer.RenyiELBO(
        alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1
    )
    assert_equal(stepped(form, IWAE(5), X[:1]), stepped(form, theirs, X[:1]))
    half = infer.RenyiELBO(
        alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    )
    assert_equal(stepped(form, RenyiELBO(0.5, 3), X[:1]), stepped(form, half, X[:1]))


@pytest.mark.parametrize("name", NAMES)
def test_svi_steps_as_fit_does(name: str) -> None:
    """SGD by the sum over B images at a rate of lr/B is SGD by their mean at lr; and the loss
    falls.
    """
    steps, rate = 20, 0.1
    goal = registry.build("objective", name)
    fitted = made(modules)
    quick: dict[str, Any] = {
        "progress": False,
        "device": "cpu",
        "compile": "off",
        "schedule": "constant",
    }
    quick |= {
        "num_epochs": steps,
        "batch_size": len(X),
        "optimizer": "SGD",
        "learning_rate": rate,
        "seed": 3,
    }
    history = fit(*fitted, X, objective=goal, **quick)
    trained = made(modules)
    svi = infer.SVI(*trained, pyro.optim.SGD({"lr": rate / len(X)}), loss=goal)
    source = make_source(X, {}, len(X), X.device)
    torch.manual_seed(3)
    losses = [
        svi.step(x) / len(X) for epoch in range(1, steps + 1) for x, _ in source.shuffled(3, epoch)
    ]
    assert losses == pytest.approx([record.loss for record in history.train], rel=1e-10)
    for ours, stock in zip(fitted, trained, strict=True):
        for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_what_svi_trained_is_what_is_evaluated() -> None:
    """A module's parameters are the same tensors; a pyro.param of the global store is not the
    pair's own, and is missed.
    """
    model, guide = made(modules)
    before = log_marginal(model, guide, X, num_samples=200, compile="off").mean
    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=IWAE(3))
    for _ in range(100):
        svi.step(X)
    found = log_marginal(model, guide, X, num_samples=200, compile="off").mean
    again = made(modules)
    for fresh, trained in zip(again, (model, guide), strict=True):
        fresh.load_state_dict(trained.state_dict())
    assert found > before + 0.5
    assert found == log_marginal(*again, X, num_samples=200, compile="off").mean
    programs = made(functions)
    infer.SVI(*programs, pyro.optim.Adam({"lr": 0.02}), loss=IWAE(3)).step(X)
    with pytest.raises(UserError, match=r"pyro\.param\('(shift|widen)'\) does not exist yet"):
        log_marginal(*programs, X, num_samples=5, device="cpu")


# ---- the contract


def test_loss_has_no_gradients_and_loss_and_grads_adds_them() -> None:
    model, guide = made(modules)
    parameters = [*model.parameters(), *guide.parameters()]
    torch.manual_seed(0)
    value = IWAE(4).loss(model, guide, X)
    assert type(value) is float and all(p.grad is None for p in parameters)
    torch.manual_seed(0)
    found = IWAE(4).differentiable_loss(model, guide, X)
    assert found.dim() == 0 and found.item() == value
    expected = torch.autograd.grad(found, parameters)
    for times in (1, 2):
        torch.manual_seed(0)
        assert IWAE(4).loss_and_grads(model, guide, X) == value
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, times * gradient)
    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), loss=IWAE(4))
    torch.manual_seed(0)
    assert svi.evaluate_loss(X) == value


def test_its_traces_are_pyros() -> None:
    """The base class's way to the runs themselves: log p(x, z) − log q(z | x) of each is one term
    of the ELBO.
    """
    model, guide = made(modules)
    torch.manual_seed(0)
    pairs = list(Trace_ELBO(3)._get_traces(model, guide, (X,), {}))
    torch.manual_seed(0)
    expected = infer.Trace_ELBO(num_particles=3).loss(model, guide, X)
    assert -sum(p.log_prob_sum() - q.log_prob_sum() for p, q in pairs).item() / 3 == pytest.approx(
        expected, rel=1e-12
    )


def test_a_subsampling_plate_scales_as_pyros() -> None:
    decoder, encoder = Decoder().double(), Encoder().double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", 240, subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", 240, subsample=x):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    for mine, theirs in BOTH:
        torch.manual_seed(0)
        expected = theirs().loss(model, guide, X)
        torch.manual_seed(0)
        assert mine.loss(model, guide, X) == pytest.approx(expected, rel=1e-12)


def test_the_dry_run_leaves_the_store_the_mode_and_the_numbers_alone() -> None:
    """Nothing is in the store but what the step itself creates there, once; dropout and BatchNorm
    see one run a step.
    """
    calls: list[str] = []
    encoder, norm = Encoder().double(), torch.nn.BatchNorm1d(PIXELS).double()

    def start() -> Tensor:
        calls.append("a" if "a" in pyro.get_param_store() else "new")
        return torch.randn(LATENT, dtype=torch.float64)

    def model(x: Tensor) -> None:
        a = pyro.param("a", start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ a, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        pyro.module("norm", norm)
        pyro.module("encoder", encoder)
        if not norm.training:
            pyro.param("of evaluation alone", torch.zeros(()))
        random.random(), np.random.rand()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(norm(x))).to_event(1))

    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=STL())
    random.seed(0), np.random.seed(0)
    svi.step(X)
    drawn = random.random(), np.random.rand()
    random.seed(0), np.random.seed(0)
    for _ in range(2):  # a path derivative runs the guide twice
        random.random(), np.random.rand()
    assert drawn == (random.random(), np.random.rand())
    created = pyro.param("a").detach().clone()
    assert "a" not in calls and norm.training and int(norm.state_dict()["num_batches_tracked"]) == 1
    number = len(calls)
    svi.step(X)
    assert len(calls) == number and int(norm.state_dict()["num_batches_tracked"]) == 2
    assert not torch.equal(pyro.param("a"), created)
    assert {name.partition("$$$")[0] for name in pyro.get_param_store()} == {"a", "norm", "encoder"}


# ---- arguments


def with_fields() -> tuple[Any, Any]:
    """A pair with two fields, one of which may be left out."""
    decoder, encoder = Decoder(LATENT + 1).double(), Encoder(pixels=PIXELS + 1).double()

    def model(x: Tensor, y: Tensor, dose: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            logits = decoder(torch.cat((z, y[:, None].expand(*z.shape[:-1], 1)), -1))
            pyro.sample(
                "x",
                dist.Bernoulli(logits=logits + (0.0 if dose is None else dose[:, None])).to_event(
                    1
                ),
                obs=x,
            )

    def guide(x: Tensor, y: Tensor, dose: Tensor | None = None) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(torch.cat((x, y[:, None]), -1))).to_event(1))

    return model, guide


@pytest.mark.parametrize(
    "call",
    [
        lambda step, y, dose: step(X, y, dose),
        lambda step, y, dose: step(X, y, dose=dose),
        lambda step, y, dose: step(X, y=y, dose=dose),
        lambda step, y, dose: step(x=X, dose=dose, y=y),
        lambda step, y, dose: step(X, y),
        lambda step, y, dose: step(X, y, None),
    ],
)
def test_arguments_are_those_of_the_programs(call: Callable[..., float]) -> None:
    y, dose = (torch.arange(len(X)) % 2).double(), torch.linspace(-1, 1, len(X)).double()
    found = []
    for loss in (Trace_ELBO(), infer.Trace_ELBO()):
        pyro.clear_param_store()
        svi = infer.SVI(*made(with_fields), pyro.optim.Adam({"lr": 0.02}), loss=loss)
        torch.manual_seed(1)
        found.append([call(svi.step, y, dose) for _ in range(3)])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_the_loss_module_takes_them_too() -> None:
    """Pyro's ``elbo(model, guide)(*args)``."""
    model, guide = made(with_fields)
    y = (torch.arange(len(X)) % 2).double()
    found = []
    for module in (Trace_ELBO()(model, guide), infer.Trace_ELBO()(model, guide)):
        for call in (lambda module: module(X, y, 2 * y), lambda module: module(X, dose=2 * y, y=y)):
            torch.manual_seed(1)
            found.append(call(module).item())
    assert found == pytest.approx(found[:1] * 4, rel=1e-12)


def test_each_program_may_name_an_argument_in_its_own_way() -> None:
    model, guide = made(with_fields)
    y = (torch.arange(len(X)) % 2).double()

    def other(images: Tensor, labels: Tensor) -> None:
        guide(images, labels)

    def crossed(x: Tensor, dose: Tensor, y: Tensor) -> None:
        guide(x, y, dose)

    found = []
    for loss in (Trace_ELBO(), infer.Trace_ELBO()):
        torch.manual_seed(1)
        found.append(loss.loss(model, other, X, y))
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    with pytest.raises(
        UserError,
        match="'dose' is given twice, or is at another place in the model than in the guide",
    ):
        Trace_ELBO().loss(model, crossed, X, y, 2 * y)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "the programs' first argument, x, was not given"),
        (([[1.0]],), "the programs' first argument, x, is a list"),
        ((X,), "requires the field 'y', which was not given"),
        ((X, X[:, 0], X[:, 0], X[:, 0]), "4 arguments were given, but the model takes x, y, dose"),
        ((X, X[:3, 0]), r"field 'y' has shape \(3,\), but there are 24 images"),
        ((X, ["a"] * 24), "field 'y' is a list: expected a tensor or array of numbers"),
    ],
)
def test_a_wrong_argument_is_one_sentence(args: tuple[Any, ...], words: str) -> None:
    model, guide = made(with_fields)
    with pytest.raises(UserError, match=words) as error:
        IWAE(3).loss(model, guide, *args)
    assert "\n" not in str(error.value)
