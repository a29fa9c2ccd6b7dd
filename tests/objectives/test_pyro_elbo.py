"""`fit` with Pyro's own ELBO objects: Pyro's loss, Pyro's gradients, and the figures of the same
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae import UserError, check_pair, fit, guides, log_marginal, objectives
from pyro_vae.choices import registry
from pyro_vae.data.loaders import make_source
from pyro_vae.pair.runtime import Pair
from tests.support.grids import thinned
from tests.support.pairs import LATENT, PIXELS, Decoder, Encoder, Model, binary_images, fresh

X = binary_images(32).double()
QUICK: dict[str, Any] = {
    "progress": False,
    "device": "cpu",
    "compile": "off",
    "schedule": "constant",
}

ELBOS: dict[str, Callable[[], Any]] = {
    "Trace": infer.Trace_ELBO,
    "Trace, 3": lambda: infer.Trace_ELBO(num_particles=3),
    "Trace, 3 at once": lambda: infer.Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "MeanField": infer.TraceMeanField_ELBO,
    "Graph": lambda: infer.TraceGraph_ELBO(num_particles=2),
    "Renyi": lambda: infer.RenyiELBO(alpha=0.5, num_particles=2),
    "Enum": lambda: infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
}


class Normed(PyroModule):
    """A guide with BatchNorm, whose statistics count the runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.encoder = nn.BatchNorm1d(PIXELS), Encoder()

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*self.encoder(self.norm(x))).to_event(1))


def made(make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The pair with the same networks at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def modules() -> tuple[Any, Any]:
    """PyroModules."""
    return Model().double(), Normed().double()


def values(*programs: nn.Module) -> list[Tensor]:
    """All parameters and buffers."""
    return [tensor for program in programs for tensor in program.state_dict().values()]


# ---- Pyro's training


@pytest.mark.parametrize("name", ELBOS)
def test_twenty_steps_are_pyros(name: str) -> None:
    """A loop by hand over the same rows and noise: losses, parameters and buffers, in float64."""
    fitted, trained = made(modules), made(modules)
    history = fit(
        *fitted,
        X,
        objective=ELBOS[name](),
        num_steps=20,
        batch_size=16,
        learning_rate=0.02,
        seed=4,
        **QUICK,
    )
    elbo = ELBOS[name]()
    parameters = [p for program in trained for p in program.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    source = make_source(X, {}, 16, X.device)
    batches = [x for epoch in range(1, 11) for x, _ in source.shuffled(4, epoch)]
    losses = []
    torch.manual_seed(4)
    for x in batches:
        optimizer.zero_grad()
        losses.append(elbo.loss_and_grads(*trained, x) / len(x))
        for parameter in parameters:
            parameter.grad /= len(x)
        optimizer.step()
    for a, b in zip(values(*fitted), values(*trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    means = [sum(losses[i : i + 2]) / 2 for i in range(0, 20, 2)]
    assert [record.loss for record in history.train] == pytest.approx(means, rel=1e-11)
    assert history.compile == "off"
    pyro.clear_param_store()


def test_the_tier_that_is_asked_for_is_told() -> None:
    history = fit(
        *fresh("closures"),
        X.float(),
        objective=infer.Trace_ELBO(),
        num_steps=2,
        **QUICK | {"compile": "graph"},
    )
    assert history.compile == "off" and history.note.count("runs as it is")


@pytest.mark.parametrize(
    ("name", "form"),
    thinned(["Trace", "MeanField", "Graph"], ["bound methods", "functions", "closures"]),
)
def test_every_form_is_trained_in_the_pairs_own_store(form: str, name: str) -> None:
    """Two pairs of one name, one after the other, and an evaluation of what was trained; Pyro's
    store stays empty.
    """
    x = X.float()
    for _ in range(2):
        model, guide = fresh(form)
        with (
            pytest.warns(UserWarning, match="Found plate statements")
            if form == "functions"
            else nullcontext()
        ):
            history = fit(
                model, guide, x, objective=ELBOS[name](), num_steps=20, learning_rate=0.08, **QUICK
            )
        assert (
            log_marginal(model, guide, x, num_samples=50, device="cpu", compile="off").mean
            > history.train[0].elbo + 0.2
        )
    assert not pyro.get_param_store()


def test_a_class_of_ones_own_is_trained() -> None:
    """Pyro's tutorial on custom objectives: a subclass, here with a weight of its own."""

    class Half(infer.Trace_ELBO):
        def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = 0.5 * super().differentiable_loss(model, guide, *args, **kwargs)
            return loss

    half, whole = made(modules), made(modules)
    one = fit(*half, X, objective=Half(), num_steps=5, optimizer="SGD", learning_rate=0.2, **QUICK)
    two = fit(
        *whole,
        X,
        objective=infer.Trace_ELBO(),
        num_steps=5,
        optimizer="SGD",
        learning_rate=0.1,
        **QUICK,
    )
    for a, b in zip(values(*half), values(*whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert (
        one.train[-1].loss == pytest.approx(0.5 * two.train[-1].loss)
        and one.train[-1].elbo == two.train[-1].elbo
    )
    assert repr(registry.build("objective", Half(num_particles=2))).endswith(
        "Half(num_particles=2)"
    )


# ---- the figures


@pytest.mark.parametrize("name", ["Trace", "Trace, 3", "Trace, 3 at once", "Graph"])
def test_the_figures_are_those_of_the_very_runs(name: str) -> None:
    """A sampled ELBO is its reconstruction less its KL, draw by draw; the validation's too."""
    history = fit(
        *made(modules),
        X,
        objective=ELBOS[name](),
        num_epochs=2,
        batch_size=16,
        x_valid=X[:20],
        **QUICK,
    )
    for record in (*history.train, *history.valid):
        assert record.loss == pytest.approx(record.kl - record.reconstruction, rel=1e-12)
        assert record.elbo == pytest.approx(record.reconstruction - record.kl, rel=1e-12)
        assert record.kl != 0


def test_the_run_that_guesses_the_plates_is_in_no_figure() -> None:
    """Pyro runs the pair once more, the first time that particles are vectorised: with other draws."""
    model, guide = made(modules)
    loss = registry.build("objective", infer.Trace_ELBO(num_particles=3, vectorize_particles=True))(
        model, guide
    )
    for _ in range(2):
        found = loss.measure(X, {})
        torch.testing.assert_close(found.loss, found.kl - found.reconstruction)


def scaled_and_masked() -> tuple[Any, Any]:
    """A subsampling plate, a scale on the latent, a mask on the pixels."""
    decoder, encoder = Decoder().double(), Encoder().double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", 320, subsample=x):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            with pyro.plate("pixels", PIXELS, dim=-2):
                seen = (torch.arange(PIXELS) % 3 > 0).unsqueeze(-1)
                logits = decoder(z).transpose(-1, -2)
                pyro.sample("x", dist.Bernoulli(logits=logits).mask(seen), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 320, subsample=x), poutine.scale(scale=0.3):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


@pytest.mark.parametrize(
    ("make", "name", "options"),
    thinned(
        [modules, scaled_and_masked],
        ["Trace_ELBO", "TraceMeanField_ELBO"],
        [{}, {"kl_weight": 0.3}, {"kl_weight": 2.0, "kl_warmup": 2.0}],
    ),
)
def test_all_figures_and_the_kl_weight_are_as_with_ours(
    make: Any, name: str, options: dict[str, Any]
) -> None:
    """Of one draw an image our objective of that name is Pyro's: unscaled figures, the plate's
    scale divided out.
    """
    found = []
    for objective in (name, getattr(infer, name)()):
        pair = made(make)
        history = fit(
            *pair,
            X,
            objective=objective,
            num_epochs=3,
            batch_size=8,
            learning_rate=0.02,
            **options | QUICK,
        )
        with torch.random.fork_rng():
            found.append((history, loss_of(pair)))
    (ours, mine), (theirs, other) = found
    for a, b in zip(ours.train, theirs.train, strict=True):
        assert (a.loss, a.reconstruction) == pytest.approx((b.loss, b.reconstruction), rel=1e-9)
        if name == "Trace_ELBO":
            assert a.kl == pytest.approx(b.kl, rel=1e-9)
    assert mine == pytest.approx(other, rel=1e-9)


def loss_of(pair: tuple[Any, Any]) -> float:
    """A number of the trained parameters: our loss of one noise."""
    torch.manual_seed(5)
    return float(objectives.Trace_ELBO()(*pair)(X).detach())


def test_renyis_kl_weight_is_ours_of_one_image() -> None:
    """Pyro's sums the images first: of one image both are one bound, with β in the exponent of the
    weights.
    """
    results = []
    for objective in (
        objectives.RenyiELBO(0.5, 3),
        infer.RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ):
        pair = made(
            lambda: (Model().double(), guides.MeanField((PIXELS,), LATENT, hidden=(8,)).double())
        )
        history = fit(*pair, X[:1], objective=objective, num_steps=10, kl_weight=0.4, **QUICK)
        results.append((history.train[-1], values(*pair)))
    (a, mine), (b, theirs) = results
    assert (a.loss, a.reconstruction, a.kl) == pytest.approx(
        (b.loss, b.reconstruction, b.kl), rel=1e-9
    )
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


# ---- enumeration


def binary_latents() -> tuple[Any, Any]:
    """Three bits, enumerated in the guide."""
    decoder, encoder, norm = (
        Decoder(1).double(),
        Encoder(1).double(),
        nn.BatchNorm1d(PIXELS).double(),
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4, dtype=x.dtype)))
            pyro.sample("x", dist.Bernoulli(logits=decoder(b.unsqueeze(-1))).to_event(1), obs=x)

    @infer.config_enumerate(default="parallel")
    def guide(x: Tensor) -> None:
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=encoder(norm(x))[0].squeeze(-1)))

    return model, guide


def test_enumerated_latents_have_pyros_loss_and_drawn_figures() -> None:
    """The exact ELBO: no noise in the loss; reconstruction − KL has it as its mean."""
    pair = made(binary_latents)
    quick = {"num_epochs": 300, "batch_size": len(X), "learning_rate": 1e-12, **QUICK}
    elbo = infer.TraceEnum_ELBO(max_plate_nesting=1)
    history = fit(*pair, X, objective=elbo, **quick)
    counted = [m for m in Pair.of(*pair).modules if isinstance(m, nn.BatchNorm1d)]
    assert [int(m.state_dict()["num_batches_tracked"]) for m in counted] == [
        300
    ]  # the figures' run is not counted
    losses, drawn = torch.tensor(
        [(record.loss, record.elbo) for record in history.train], dtype=torch.float64
    ).T
    assert float(losses.std()) < 1e-6 < float(drawn.std())
    assert losses[0].item() == pytest.approx(
        infer.TraceEnum_ELBO(max_plate_nesting=1).loss(*pair, X) / len(X), rel=1e-9
    )
    assert abs(float(drawn.mean() + losses.mean())) < 4 * float(drawn.std()) / len(drawn) ** 0.5


def test_a_site_that_the_model_enumerates_is_as_the_sum_of_ours() -> None:
    """A class that the guide lacks: Pyro enumerates it in parallel, we sum it out; the same step."""

    def make() -> tuple[Any, Any]:
        decoder, encoder = Decoder(LATENT + 1).double(), Encoder().double()

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
                c = pyro.sample(
                    "c", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"}
                )
                parts = torch.broadcast_tensors(z, c.unsqueeze(-1))
                logits = decoder(torch.cat((parts[0], parts[1][..., :1]), -1))
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

        return model, guide

    for seed in range(3):
        found = []
        for objective in ("Trace_ELBO", infer.TraceEnum_ELBO(max_plate_nesting=1)):
            pair = made(make)
            history = fit(
                *pair, X, objective=objective, num_steps=1, learning_rate=0.05, seed=seed, **QUICK
            )
            found.append((history.train[0].loss, loss_of(pair)))
        assert found[0] == pytest.approx(found[1], rel=1e-9)


# ---- what is refused


def functions_without_a_path() -> tuple[Any, Any]:
    """Bits drawn, without a reparameterisation."""
    model, guide = binary_latents()
    return model, poutine.infer_config(guide, lambda site: {"enumerate": None})


def test_pyros_own_checks_are_heard_in_one_sentence() -> None:
    """Inside a training Pyro's validation is off, and its TraceMeanField_ELBO would train such a
    pair wrongly.
    """
    with pytest.raises(
        UserError,
        match=r"^pyro\.infer\.TraceMeanField_ELBO\(\) can't train this pair: .*reparameterized",
    ) as error:
        fit(
            *made(functions_without_a_path),
            X,
            objective=infer.TraceMeanField_ELBO(),
            num_steps=2,
            **QUICK,
        )
    assert "\n" not in str(error.value)
    fit(*made(functions_without_a_path), X, objective=infer.TraceGraph_ELBO(), num_steps=2, **QUICK)


REFUSED: dict[str, tuple[Any, str]] = {
    "a class": (
        infer.Trace_ELBO,
        r"objective is the class Trace_ELBO, not an instance of it: write Trace_ELBO\(\)",
    ),
    "half a name": (
        "ELBO",
        "unknown objective 'ELBO'; did you mean 'TraceMeanField_ELBO' or 'Trace_ELBO'?",
    ),
    "a number": (3, "objective is a int: expected a name"),
    "a function": (lambda model, guide, x: 0.0, "objective is a function: expected a name"),
    "another class": (nn.Linear, "objective is the class Linear: expected a name"),
    "a module": (nn.Linear(1, 1), "objective is a Linear: expected a name"),
    "no bound": (infer.EnergyDistance(), "objective is a EnergyDistance: expected a name"),
    "jit": (
        infer.JitTrace_ELBO(),
        r"pyro\.infer\.JitTrace_ELBO\(\) can't be used here, because it traces",
    ),
    "two losses": (
        infer.ReweightedWakeSleep(),
        r"ReweightedWakeSleep\(.*\) can't be used here, because it has two losses",
    ),
    "no loss": (
        infer.TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True),
        "can't be used here, because it has gradients but no loss",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_objective_is_refused_in_one_sentence(case: str) -> None:
    objective, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as error:
        fit(*made(modules), X, objective=objective, num_steps=2, **QUICK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl_weight": "2"}, "kl_weight='2': expected a number, 0 or more"),
        ({"kl_weight": [1.0]}, r"kl_weight=\[1.0\]: expected a number, 0 or more"),
    ],
)
def test_a_kl_weight_is_a_number(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(*made(modules), X, num_steps=2, **options | QUICK)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (
            np.array(["a"] * 32),
            "field 'y' is an array of dtype <U1: expected a tensor or array of numbers .*classes as whole numbers",
        ),
        (
            np.array([None] * 32),
            "field 'y' is an array of dtype object: expected a tensor or array of numbers",
        ),
        (["a"] * 32, "field 'y' is a list: expected a tensor or array of numbers"),
        ([1] * 31, r"field 'y' has shape \(31,\), but there are 32 images: expected one row"),
    ],
)
def test_a_field_is_numbers(y: Any, words: str) -> None:
    model, guide = made(modules)
    with pytest.raises(UserError, match=words) as error:
        fit(lambda x, y: model(x), lambda x, y: guide(x), X, y=y, num_steps=2, **QUICK)
    assert "\n" not in str(error.value)


def test_a_request_that_only_pyros_own_objective_serves_is_not_dropped() -> None:
    """A baseline changes Pyro's estimator; ours would sample the site without a word."""
    torch.manual_seed(0)
    means, x = torch.randn(3, 4), torch.randn(16, 4)
    request = {"baseline": {"use_decaying_avg_baseline": True}}
    encode = nn.Linear(4, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(means[c], 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=encode(x)), infer=request)

    own = infer.TraceGraph_ELBO()
    with pytest.raises(UserError, match=r"'c' of the guide asks for a baseline.*TraceGraph_ELBO"):
        fit(model, guide, x, objective="Trace_ELBO", num_steps=1, progress=False)
    assert fit(model, guide, x, objective=own, num_steps=4, batch_size=8, progress=False).train
    # Pyro's moving average has the size of its batch
    with pytest.raises(UserError, match="TraceGraph_ELBO"):
        fit(model, guide, x, objective=own, num_steps=4, batch_size=7, progress=False)
    assert "baseline" in str(check_pair(model, guide, x))
    exact = (
        torch.logsumexp(dist.Normal(means, 1.0).log_prob(x.unsqueeze(-2)).sum(-1), -1)
        - torch.tensor(3.0).log()
    )
    found = log_marginal(model, guide, x, num_samples=2000, compile="off")
    assert found.mean == pytest.approx(float(exact.mean()), abs=5 * found.se_mc + 1e-3)


# ---- all rows at once


class Whole(nn.Module):
    """Programs that no batch of other rows suits, of 16 binary pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.decode, self.encode = Decoder().double(), Encoder().double()


def some_of_its_rows() -> tuple[Any, Any]:
    """8 of the rows that it is given, drawn by its own plate, as Pyro's AIR."""
    parts = Whole()

    def model(x: Tensor) -> None:
        pyro.module("decoder", parts.decode)
        with pyro.plate("data", len(x)) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            logits = parts.decode(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x[rows])

    def guide(x: Tensor) -> None:
        pyro.module("encoder", parts.encode)
        with pyro.plate("data", len(x), subsample_size=8) as rows:
            pyro.sample("z", dist.Normal(*parts.encode(x[rows])).to_event(1))

    return model, guide


def a_parameter_for_each_row() -> tuple[Any, Any]:
    """q(z) of each row by itself, as in Pyro's deep exponential family."""
    parts = Whole()

    def model(x: Tensor) -> None:
        pyro.module("decoder", parts.decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=parts.decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x.new_zeros(len(x), LATENT))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return model, guide


def rows_in_columns() -> tuple[Any, Any]:
    """x is (pixels, images), as the documents of Pyro's LDA are."""
    parts = Whole()

    def model(x: Tensor) -> None:
        assert len(x) == PIXELS
        pyro.module("decoder", parts.decode)
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=parts.decode(z)).to_event(1), obs=x.T)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", parts.encode)
        with pyro.plate("data", x.shape[1]):
            pyro.sample("z", dist.Normal(*parts.encode(x.T)).to_event(1))

    return model, guide


@pytest.mark.parametrize("make", [some_of_its_rows, a_parameter_for_each_row, rows_in_columns])
def test_all_rows_at_once_are_what_svi_gives(make: Callable[[], tuple[Any, Any]]) -> None:
    """``batch_size=None`` against ``SVI.step(x)``: every loss, in the same noise; the figures are
    of the same scale; and log p(x) of one row is refused for its reason.
    """
    x = X.T.contiguous() if make is rows_in_columns else X
    (model, guide), stock = made(make), made(make)
    with pytest.raises(UserError):
        fit(model, guide, x, num_steps=1, **QUICK)
    kwargs = {"batch_size": None, "objective": "Trace_ELBO", "num_steps": 5, "seed": 4}
    history = fit(
        model,
        guide,
        x,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=1e-2),
        learning_rate=1e-2,
        **kwargs,
        **QUICK,
    )
    pyro.clear_param_store()
    torch.manual_seed(4)
    svi = infer.SVI(*stock, pyro.optim.SGD({"lr": 1e-2 / len(x)}), infer.Trace_ELBO())
    losses = [svi.step(x) / len(x) for _ in range(5)]
    assert [record.loss for record in history.train] == pytest.approx(losses, rel=1e-12)
    assert [-record.elbo for record in history.train] == pytest.approx(losses, rel=1e-12)
    with pytest.raises(UserError, match=r"all \d+ rows of x at once"):
        log_marginal(model, guide, x, num_samples=5)
    with pytest.raises(UserError, match="takes a tensor or array"):
        fit(model, guide, torch.utils.data.TensorDataset(x), batch_size=None, **QUICK)
    pyro.clear_param_store()


def test_a_batch_of_the_whole_set_is_one_of_its_images() -> None:
    """An amortized pair is read as ever: the same figures as of a batch that large, and scored."""
    model, guide = made(modules)
    other = made(modules)
    options: dict[str, Any] = {"num_steps": 1, "learning_rate": 1e-9, **QUICK}
    whole = fit(model, guide, X, batch_size=None, **options).train[-1]
    batch = fit(*other, X, batch_size=len(X), **options).train[-1]
    assert whole.kl == pytest.approx(batch.kl, rel=1e-6)
    assert len(log_marginal(model, guide, X, num_samples=5).log_px) == len(X)
