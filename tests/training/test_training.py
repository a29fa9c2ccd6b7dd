"""fit is SVI as Pyro does it, with its own random numbers, order, fields and manners."""

from __future__ import annotations

import copy
import inspect
import random
import re
from collections.abc import Callable
from dataclasses import fields
from math import cos, pi
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from pyro.nn import PyroModule
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import (
    Diverged,
    EarlyStopping,
    UserError,
    check_pair,
    fit,
    guides,
    log_marginal,
    models,
)
from pyro_vae.data.batches import Resident
from pyro_vae.data.loaders import make_source
from pyro_vae.objectives import TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from pyro_vae.runs.options import Train
from pyro_vae.training.loop import evaluate_elbo
from pyro_vae.training.options import FitOptions
from pyro_vae.training.settings import Settings
from pyro_vae.training.train_step import TrainStep
from tests.support.grids import thinned
from tests.support.pairs import PIXELS, Guide, Model, binary_images, fresh
from tests.support.training import CPU, QUICK, Images, X, our_pair, same, state_of

# ---- Pyro's SVI


@pytest.mark.parametrize(
    ("objective", "make"),
    thinned(["Trace_ELBO", "TraceMeanField_ELBO"], [our_pair, lambda: fresh("PyroModules")]),
)
def test_twenty_steps_are_those_of_svi(make: Callable[[], tuple[Any, Any]], objective: str) -> None:
    """The same noise and batches, the loss divided by the batch: the parameters of stock SVI (issue
    2, law 7).
    """
    model, guide = make()
    other_model, other_guide = copy.deepcopy(model), copy.deepcopy(guide)
    fit(
        model,
        guide,
        X,
        objective=objective,
        num_steps=20,
        schedule="constant",
        learning_rate=0.01,
        seed=4,
        **QUICK,
    )

    def per_image(program: Any) -> Any:
        return poutine.scale(program, scale=1 / 16)

    source = make_source(X, {}, 16, CPU)
    pyro.clear_param_store()
    try:
        if (
            make is not our_pair
        ):  # both call their network `net`, which SVI's one global store can't hold apart
            other_guide = Renamed(other_guide)
        loss = getattr(infer, objective)()
        svi = infer.SVI(
            per_image(other_model), per_image(other_guide), pyro.optim.Adam({"lr": 0.01}), loss
        )
        with torch.random.fork_rng():
            torch.manual_seed(4)
            batches = [x for epoch in range(1, 8) for x, _ in source.shuffled(4, epoch)][:20]
            for x in batches:
                svi.step(x)
    finally:
        pyro.clear_param_store()
    found, expected = state_of(model, guide), state_of(other_model, other_guide)
    assert not same(found, state_of(*make()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Renamed(PyroModule):
    """A program one level deeper, so that its networks have names of their own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        """As the inner one."""
        return self.inner(x)


def test_predictive_and_trace_work_on_our_programs() -> None:
    model, guide = our_pair()
    fit(model, guide, X, num_epochs=1, **QUICK)
    drawn = infer.Predictive(model, guide=guide, num_samples=6)(X)
    assert drawn["z"].shape == (6, 48, 2)
    prior = infer.Predictive(model, num_samples=3)(None, size=10)
    assert prior["x"].shape == (3, 10, PIXELS) and prior["z"].shape == (3, 10, 2)
    trace = poutine.trace(poutine.replay(model, trace=poutine.trace(guide).get_trace(X))).get_trace(
        X
    )
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == trace.nodes["z"]["log_prob"].shape == (48,)
    pyro.clear_param_store()


# ---- randomness, modes, isolation


@pytest.mark.parametrize("tier", ["off", "graph"])
def test_one_seed_one_result(tier: str) -> None:
    results, histories = [], []
    for seed in (3, 3, 4):
        pair = our_pair()
        torch.rand(7)  # what the caller has drawn before does not matter
        histories.append(fit(*pair, X, num_epochs=2, seed=seed, **{**QUICK, "compile": tier}))
        results.append(state_of(*pair))
    assert same(results[0], results[1]) and histories[0].train == histories[1].train
    assert not same(results[0], results[2])


def test_replaying_the_graph_is_running_the_programs() -> None:
    """To the last bit, batch by batch, the odd last batch too."""
    eager, graph = our_pair(), our_pair()
    fit(*eager, X[:41], num_epochs=3, seed=3, **QUICK)
    history = fit(*graph, X[:41], num_epochs=3, seed=3, **{**QUICK, "compile": "graph"})
    assert history.compile == "graph" and same(state_of(*eager), state_of(*graph))


def test_the_callers_random_state_and_modes_are_restored() -> None:
    model, guide = our_pair()
    guide.eval()
    model.likelihood.net.eval()
    modes = [m.training for program in (model, guide) for m in program.modules()]
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    settings, grad = pyro.settings.get(), torch.is_grad_enabled()
    fit(model, guide, X, num_epochs=2, x_valid=X[:20], **QUICK)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2][1])  # type: ignore[index]
    assert [m.training for program in (model, guide) for m in program.modules()] == modes
    assert pyro.settings.get() == settings and torch.is_grad_enabled() == grad


def test_the_callers_state_is_restored_after_an_error() -> None:
    model, guide = our_pair()
    guide.eval()
    torch.manual_seed(9)
    before, settings = torch.get_rng_state(), pyro.settings.get()

    def stop(_: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, guide, X, callbacks=[stop], **QUICK)
    assert torch.equal(torch.get_rng_state(), before) and pyro.settings.get() == settings
    assert not guide.training and model.training
    assert fit(model, guide, X, num_epochs=1, **QUICK).num_steps == 3


def test_interleaved_fits_do_not_touch_each_other() -> None:
    """A callback of the first trains another pair after every epoch: the first ends where it ends
    alone.
    """
    alone, first, second = our_pair(), our_pair(), our_pair(1)
    fit(*alone, X, num_epochs=3, seed=5, **QUICK)
    kept = state_of(*second)

    def train_another(_: Any) -> None:
        fit(*second, X, num_epochs=1, seed=6, **QUICK)

    fit(*first, X, num_epochs=3, seed=5, callbacks=[train_another], **QUICK)
    assert same(state_of(*alone), state_of(*first))
    assert not same(kept, state_of(*second))


@pytest.mark.parametrize("tier", ["off", "graph"])
def test_batchnorm_learns_in_fit_alone(tier: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(2, (1, 4, 4), net="Conv", channels=(3,))
        )
        guide = guides.MeanField((1, 4, 4), 2, net="Conv", channels=(3,))
    x = binary_images(33, 16).reshape(-1, 1, 4, 4)

    def statistics() -> list[Tensor]:
        return [b.clone() for program in (model, guide) for b in program.buffers()]

    before = statistics()
    check_pair(model, guide, x)
    log_marginal(model, guide, x, num_samples=5, device="cpu", compile=tier)
    assert same(before, statistics())
    fit(model, guide, x, num_epochs=2, x_valid=x, **{**QUICK, "compile": tier})
    after = statistics()
    counts = [int(b) for b in after if b.dim() == 0 and not b.is_floating_point()]
    assert counts and set(counts) == {
        4
    }  # 33 images in batches of 16: 2 steps an epoch, and nothing else ran
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.dim()]
    assert sum(moved) >= 4


# ---- batches and fields


def steps_seen(num_images: int, batch_size: int) -> list[int]:
    """The sizes of one epoch's batches."""
    return [
        len(x)
        for x, _ in make_source(torch.zeros(num_images, 2), {}, batch_size, CPU).shuffled(0, 1)
    ]


def test_a_last_image_alone_joins_the_batch_before() -> None:
    assert steps_seen(33, 16) == [16, 17]
    assert steps_seen(34, 16) == [16, 16, 2]
    assert steps_seen(32, 16) == [16, 16]
    assert steps_seen(1, 16) == [1] and steps_seen(5, 16) == [5]
    assert steps_seen(3, 1) == [1, 1, 1]


@pytest.mark.parametrize("num_images", [1, 2, 17, 33, 47])
def test_every_image_is_visited_once_an_epoch(num_images: int) -> None:
    source = make_source(torch.arange(num_images).float().unsqueeze(-1), {}, 16, CPU)
    for epoch in (1, 2):
        seen = torch.cat([x for x, _ in source.shuffled(0, epoch)]).squeeze(-1)
        assert torch.equal(seen.sort().values, torch.arange(num_images).float())
        index = torch.cat([named["index"] for _, named in source.shuffled(0, epoch)])
        assert torch.equal(index.float(), seen)


@pytest.mark.parametrize("num_bytes", [1, 4 * 16, 4 * 40, 2**20])
@pytest.mark.parametrize("own_index", [False, True])
def test_batches_are_the_same_however_many_a_gather_brings(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, own_index: bool
) -> None:
    monkeypatch.setattr("pyro_vae.data.batches.GATHERED", num_bytes)
    fields = {
        "y": torch.arange(47) * 2.0,
        **({"index": 100 - torch.arange(47)} if own_index else {}),
    }
    source = Resident(torch.arange(47).float().unsqueeze(-1), fields, 16, CPU)
    for skip in (0, 1, 3):
        found = list(source.shuffled(3, 2, skip))
        assert [len(x) for x, _ in found] == [16, 16, 15][skip:]
        for rows, (x, named) in zip(source.rows(3, 2, skip), found, strict=True):
            assert torch.equal(x, source.x[rows])
            assert set(named) == {"y", "index"} and all(
                torch.equal(named[n], source.fields[n][rows]) for n in named
            )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_sets_train(size: int) -> None:
    history = fit(*our_pair(), X[:size], num_epochs=2, **QUICK)
    assert history.num_steps == 2 and np.isfinite(history.train[-1].loss)


class Spy(Model):
    """A model that asks for two fields, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, index: Tensor, y: Tensor) -> None:
        """p(x, z); y is not used."""
        self.seen.append((x.detach().clone(), index.clone(), y.clone()))
        super().forward(x)


def test_fields_and_index_match_their_rows() -> None:
    model, guide, y = Spy(), Guide(), torch.arange(48) * 3
    fit(model, guide, X, y=y, num_epochs=2, x_valid={"x": X[:10], "y": y[:10]}, **QUICK)
    trained = [seen for seen in model.seen if len(seen[0]) == 16]
    assert len(trained) >= 6
    for x, index, labels in trained:
        assert torch.equal(x, X[index]) and torch.equal(labels, 3 * index)
    assert any(len(seen[0]) == 10 and torch.equal(seen[2], y[:10]) for seen in model.seen)


def test_validation_fields_must_be_the_same() -> None:
    with pytest.raises(
        UserError, match=r"x_valid has no fields besides x, but the training set has y"
    ):
        fit(Spy(), Guide(), X, y=torch.arange(48), x_valid=X, **QUICK)
    with pytest.raises(UserError, match=r"field 'y' has shape \(47,\), but there are 48 images"):
        fit(Spy(), Guide(), X, y=torch.arange(47), **QUICK)


@pytest.mark.parametrize("form", ["dict", "pair", "tensor"])
def test_a_dataset_gives_the_same_as_its_tensors(form: str) -> None:
    tensors, streamed = our_pair(), our_pair()
    first = fit(*tensors, X, num_epochs=2, x_valid=X, seed=2, **QUICK)
    second = fit(*streamed, Images(form), num_epochs=2, x_valid=Images(form), seed=2, **QUICK)
    assert same(state_of(*tensors), state_of(*streamed))
    assert first.train == second.train and first.valid[-1].elbo == pytest.approx(
        second.valid[-1].elbo, abs=1e-5
    )


def test_a_dataset_tells_fields_and_index() -> None:
    model = Spy()
    fit(model, Guide(), Images("pair"), num_epochs=1, **QUICK)
    for x, index, labels in model.seen:
        assert torch.equal(x, X[index]) and torch.equal(labels, 3 * index)


def test_a_dataset_may_have_a_resident_validation_set() -> None:
    history = fit(
        Spy(),
        Guide(),
        Images("dict"),
        num_epochs=1,
        x_valid={"x": X[:10], "y": torch.arange(10)},
        **QUICK,
    )
    assert len(history.valid) == 1


def test_a_dataloader_keeps_its_own_order() -> None:
    loaded, tensors = our_pair(), our_pair()
    loader = DataLoader(TensorDataset(X), batch_size=16, shuffle=False)
    history = fit(*loaded, loader, num_epochs=2, **{**QUICK, "batch_size": 5})
    assert history.num_steps == 6
    whole = fit(*tensors, loader, num_epochs=2, **QUICK)
    assert same(state_of(*loaded), state_of(*tensors)) and history.train == whole.train


def test_a_dataloader_knows_no_index() -> None:
    with pytest.raises(
        UserError, match="needs the field 'index', which a DataLoader does not give"
    ):
        fit(Spy(), Guide(), DataLoader(Images("pair"), batch_size=16), **QUICK)


def test_a_dataset_is_evaluated_as_its_tensors() -> None:
    pair = our_pair()
    first = log_marginal(*pair, X, num_samples=10, device="cpu", compile="off")
    second = log_marginal(*pair, Images("pair"), num_samples=10, device="cpu", compile="off")
    assert torch.equal(first.log_px, second.log_px) and first.protocol == second.protocol


# ---- options


def test_early_stopping_keeps_the_best_epoch() -> None:
    model, guide = our_pair()
    states: list[list[Tensor]] = []

    def remember(_: Any) -> None:
        states.append(state_of(model, guide))

    stopping = EarlyStopping(patience=2)
    history = fit(
        model, guide, X[:16], num_epochs=60, schedule="constant", learning_rate=0.1, x_valid=1 - X[:16],
        callbacks=[remember, stopping], **QUICK
    )  # fmt: skip
    best = max(range(len(history.valid)), key=lambda epoch: history.valid[epoch].elbo)
    assert stopping.best == history.valid[best]
    assert (
        len(history.valid) == best + 3 < 60
        and history.stopped == f"EarlyStopping after epoch {best + 3}"
    )
    assert same(states[best], state_of(model, guide)) and not same(
        states[-1], state_of(model, guide)
    )


def test_early_stopping_needs_a_validation_set() -> None:
    with pytest.raises(UserError, match=r"x_valid"):
        fit(*our_pair(), X, callbacks=[EarlyStopping()], **QUICK)


def test_callbacks_see_each_epoch_and_may_end_it() -> None:
    ends: list[Any] = []

    def third(state: Any) -> bool:
        ends.append((state.train.epoch, state.last, state.valid is None))
        return bool(state.train.epoch == 3)

    history = fit(*our_pair(), X, num_epochs=5, callbacks=[third], **QUICK)
    assert ends == [(1, False, True), (2, False, True), (3, False, True)]
    assert history.stopped == "third after epoch 3" and history.num_steps == 9


def test_what_a_callback_happens_to_return_ends_nothing() -> None:
    """A frozen decoder that is thawed at the second epoch, by ``requires_grad_``, whose module is
    returned, trains from the third.
    """
    model, guide = our_pair()
    net = model.likelihood.requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    history = fit(
        model,
        guide,
        X,
        num_epochs=3,
        callbacks=[lambda end: net.requires_grad_(end.train.epoch >= 2)],
        **QUICK,
    )
    assert len(history.train) == 3 and not history.stopped
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("form", "part"),
    thinned(["PyroModules", "bound methods", "functions", "PyroParams"], ["model", "guide"]),
)
def test_a_frozen_part_stays(form: str, part: str) -> None:
    model, guide = fresh(form)
    if form == "functions":
        fit(model, guide, X, num_epochs=1, **QUICK)
    pair = Pair.of(model, guide)
    pair.structure(X, {})
    before = {id(t): t.detach().clone() for t in pair.tensors()}
    fit(model, guide, X, num_epochs=2, freeze=part, **QUICK)
    for tensor in pair.tensors():
        assert torch.equal(before[id(tensor)], tensor) == (pair.name_of(tensor)[0] == part)
    assert all(t.requires_grad for t in pair.tensors())


def test_the_kl_warmup_reaches_the_weight() -> None:
    """From 0 in a line over 1.5 epochs of 3 steps, then the whole."""
    model, guide = our_pair()
    seen: list[float] = []
    original = TrainStep.__call__

    def compute(self: Any, x: Tensor, fields: Any) -> Any:
        seen.append(float(self.loss.kl_weight))
        return original(self, x, fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", compute)
        fit(model, guide, X, num_epochs=3, kl_weight=0.8, kl_warmup=1.5, **QUICK)
    expected = [0.8 * min(1.0, step / 4.5) for step in range(9)]
    assert seen[-9:] == pytest.approx(expected, rel=1e-6)


def test_the_warmup_reaches_a_replayed_graph() -> None:
    eager, graph = our_pair(), our_pair()
    fit(*eager, X, num_epochs=3, kl_warmup=2, **QUICK)
    fit(*graph, X, num_epochs=3, kl_warmup=2, **{**QUICK, "compile": "graph"})
    assert same(state_of(*eager), state_of(*graph))


def test_figures_are_nats_per_image() -> None:
    """``loss`` is the weighted objective; ``elbo`` is reconstruction − kl at weight 1; on the whole
    set.
    """
    history = fit(*our_pair(), X, num_epochs=2, kl_weight=0.25, x_valid=X, **QUICK)
    for record in (*history.train, *history.valid):
        assert record.elbo == pytest.approx(record.reconstruction - record.kl, abs=1e-9)
    for record in history.train:
        assert record.loss == pytest.approx(0.25 * record.kl - record.reconstruction, abs=1e-4)
    assert -2 * PIXELS < history.train[0].elbo < 0


def test_validation_has_the_same_noise_each_time() -> None:
    """With a learning rate that moves nothing, two epochs' validation figures are one."""
    history = fit(*our_pair(), X, num_epochs=2, learning_rate=1e-30, x_valid=X, **QUICK)
    first, second = history.valid
    assert (first.elbo, first.kl) == (second.elbo, second.kl)


def test_the_gradient_is_clipped() -> None:
    """Plain SGD at rate 1: a step's length is the clipped norm, at most."""
    model, guide = our_pair()
    before = state_of(model, guide)
    fit(
        model,
        guide,
        X,
        num_steps=1,
        optimizer="SGD",
        learning_rate=1.0,
        schedule="constant",
        grad_clip=1e-3,
        **QUICK,
    )
    step = (
        torch.stack(
            [(a - b).square().sum() for a, b in zip(before, state_of(model, guide), strict=True)]
        )
        .sum()
        .sqrt()
    )
    assert float(step) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    "schedule",
    ["constant", "cosine", "linear", "Cosine(warmup=0.5)", "geometric",
     "Cosine(final=0.2)", "Cosine(final=0.2, warmup=0.25)", "Linear(final=0.3)", "Geometric(stages=2)"],
)  # fmt: skip
def test_the_schedule_sets_the_rate(schedule: str) -> None:
    """SGD with one clipped gradient norm a step: the lengths of the steps are the rates."""
    factors = {
        "constant": lambda t: 1.0,
        "cosine": lambda t: 0.5 + 0.5 * cos(pi * t),
        "linear": lambda t: 1 - t,
        "Cosine(warmup=0.5)": lambda t: 2 * t if t < 0.5 else 0.5 + 0.5 * cos(pi * (2 * t - 1)),
        "Cosine(final=0.2)": lambda t: 0.2 + 0.8 * (0.5 + 0.5 * cos(pi * t)),
        "Cosine(final=0.2, warmup=0.25)": lambda t: (
            4 * t if t < 0.25 else 0.2 + 0.8 * (0.5 + 0.5 * cos(pi * (t - 0.25) / 0.75))
        ),
        "Linear(final=0.3)": lambda t: 1 - 0.7 * t,
        "Geometric(stages=2)": lambda t: 1.0 if t < 0.25 else 0.1,
        "geometric": lambda t: (
            10 ** (-next(i for i in range(8) if t * 3280 < (3 ** (i + 1) - 1) / 2) / 7)
        ),
    }
    rates: list[float] = []

    class Recorded(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    fit(
        *our_pair(),
        X,
        num_steps=8,
        optimizer=Recorded,
        learning_rate=0.1,
        schedule=schedule,
        **QUICK,
    )
    assert rates == pytest.approx([0.1 * factors[schedule](step / 8) for step in range(8)])


@pytest.mark.parametrize(
    "optimizer",
    ["Adam", "Adam(eps=1e-4)", "AdamW(weight_decay=0.01)", "SGD(momentum=0.9)", "RMSprop", torch.optim.Adagrad,
     lambda parameters: torch.optim.Adam(parameters, lr=0.02)],
)  # fmt: skip
def test_optimisers(optimizer: Any) -> None:
    pair = our_pair()
    before = state_of(*pair)
    history = fit(
        *pair,
        X,
        num_epochs=4,
        optimizer=optimizer,
        learning_rate=0.01,
        schedule="constant",
        **QUICK,
    )
    assert history.train[-1].loss < history.train[0].loss and not same(before, state_of(*pair))


@pytest.mark.parametrize(
    ("steps", "records"), [(7, [3, 7]), (6, [3, 6]), (5, [5]), (3, [3]), (2, [2])]
)
def test_steps_win_over_epochs_and_a_cut_pass_joins_the_one_before(
    steps: int, records: list[int]
) -> None:
    history = fit(*our_pair(), X, num_epochs=50, num_steps=steps, **QUICK)
    assert history.num_steps == steps and [r.step for r in history.train] == records


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert fit(*our_pair(), X, num_epochs=2, **{**QUICK, "batch_size": 1000}).num_steps == 2


def test_a_huge_learning_rate_diverges_in_words() -> None:
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Gaussian(2, (PIXELS,), hidden=(8,))
    )
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) in epoch \d+ .*learning rate"):
        fit(
            model, guides.MeanField((PIXELS,), 2, hidden=(8,)), X, num_epochs=40, learning_rate=1e6, schedule="constant",
            optimizer="SGD", **QUICK
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"num_epochs": -3}, "num_epochs=-3"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": True}, "num_steps=True"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0"),
        ({"kl_weight": float("nan")}, "kl_weight=nan"),
        ({"kl_warmup": -1}, "kl_warmup=-1"),
        ({"grad_clip": 0.0}, "grad_clip=0.0"),
        ({"freeze": "modle"}, "did you mean 'model'"),
        ({"binarize": "dynamc"}, "did you mean 'dynamic'"),
        ({"objective": "Trace_ELB"}, "did you mean 'Trace_ELBO'"),
        ({"objective": "Trace_ELBO(num_particles=0)"}, "num_particles=0"),
        ({"schedule": "cosin"}, "(?i)did you mean 'cosine'"),
        ({"optimizer": "Adma"}, "did you mean"),
        ({"optimizer": "Adam(eps=-1)"}, "eps"),
        ({"optimizer": 3}, "optimizer is a int"),
        ({"device": "tpu9"}, "device"),
        ({"compile": "fast"}, "compile"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"x_valid": {"y": X}}, "x_valid"),
        ({"x_valid": X[:0]}, "x_valid is empty"),
        ({"callbacks": 3}, "callbacks"),
    ],
    ids=str,
)
def test_options_are_refused_in_a_line(options: dict[str, Any], word: str) -> None:
    model, guide = our_pair()
    before = state_of(model, guide)
    with pytest.raises(UserError, match=word) as error:
        fit(model, guide, X, **{**QUICK, **options})
    assert "\n" not in str(error.value) and same(before, state_of(model, guide))


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (X[:0], "x_train is empty"),
        (torch.where(torch.arange(48).unsqueeze(-1) == 7, torch.nan, X), "row 7 has a NaN"),
        (X.numpy() / 0.5, "the value 2 is outside the support of Bernoulli: binarize"),
        (X.to(torch.uint8) * 255, "the value 255 is outside the support"),
        (X[:, 0], "one row for each image"),
        (X.tolist(), "x_train is a list"),
        (X.to(torch.complex64), "complex"),
        (np.array([["a"]]), "dtype"),
        (Images("tensor").__getitem__(0).unsqueeze(0)[:, :5], "5"),
    ],
)
def test_data_are_refused_in_a_line(x: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        fit(*our_pair(), x, **QUICK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold"])
def test_grey_images_are_binarized(binarize: str) -> None:
    grey = (binary_images(48) * 200).to(torch.uint8) + 20
    history = fit(*our_pair(), grey, binarize=binarize, num_epochs=2, x_valid=grey, **QUICK)
    assert len(history.valid) == 2


def test_binary_bytes_are_their_own_probabilities() -> None:
    """Images of 0 and 1 in uint8 are binary, not almost black; NumPy's bytes are torch's."""
    plain, drawn, array = our_pair(), our_pair(), our_pair()
    history = fit(*plain, X, num_epochs=2, **QUICK)
    assert (
        fit(*drawn, X.to(torch.uint8), binarize="threshold", num_epochs=2, **QUICK).train
        == history.train
    )
    assert (
        fit(
            *array, X.to(torch.uint8).numpy() * 255, binarize="threshold", num_epochs=2, **QUICK
        ).train
        == history.train
    )


def test_a_dataset_is_not_binarized_once() -> None:
    for options in ({"binarize": "static"}, {"binarize": "dynamic", "x_valid": Images("tensor")}):
        with pytest.raises(UserError, match="because it is a Dataset"):
            fit(*our_pair(), Images("tensor"), **options, **QUICK)


def test_grey_validation_images_are_refused() -> None:
    with pytest.raises(UserError, match="outside the support of Bernoulli"):
        fit(*our_pair(), X, x_valid=X / 2, **QUICK)


def test_nothing_to_train_is_an_error() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.raises(UserError, match="nothing to train"):
        fit(model, guide, X, **QUICK)


def test_a_frozen_network_of_the_users_stays() -> None:
    """requires_grad_(False) is respected."""
    model, guide = our_pair()
    model.requires_grad_(False)
    before, moved = state_of(model), state_of(guide)
    fit(model, guide, X, num_epochs=1, **QUICK)
    assert same(before, state_of(model)) and not same(moved, state_of(guide))


# ---- the host is left alone


class CountReads(TorchDispatchMode):
    """How often a value is read back to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.reads += any(
            word in name
            for word in ("_local_scalar_dense", "aten.item", "nonzero", "is_nonzero", "equal.")
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["ours", "bound methods", "functions"])
def test_the_host_reads_once_an_epoch(form: str) -> None:
    """The reads of a training do not depend on the number of its steps."""

    def reads(num_images: int) -> int:
        model, guide = our_pair() if form == "ours" else fresh(form)
        with CountReads() as counter:
            fit(
                model,
                guide,
                binary_images(num_images),
                num_epochs=2,
                grad_clip=1.0,
                kl_warmup=1,
                **QUICK,
            )
        return counter.reads

    assert reads(32) == reads(160)


# ---- the validation figure


def test_the_evaluated_elbo_is_the_sets() -> None:
    model, guide = our_pair()
    loss = TraceMeanField_ELBO()(model, guide)
    loss.kl_weight.fill_(0.1)
    record = evaluate_elbo(loss, make_source(X, {}, 7, CPU), seed=0)
    many = log_marginal(model, guide, X, num_samples=2000, device="cpu")
    assert record.elbo == pytest.approx(many.elbo, abs=0.3)
    assert record.loss == pytest.approx(-record.elbo, abs=1e-5)  # at weight 1
    assert float(loss.kl_weight) == pytest.approx(0.1)


def test_an_option_of_fit_is_one_field() -> None:
    """The signature's names and defaults are the dataclass's, each is in the docstring, and the
    command line has every plain one.
    """
    signature = inspect.signature(fit).parameters
    options = {each.name: each.default for each in fields(FitOptions)}
    own = {
        n: p.default
        for n, p in signature.items()
        if n not in ("model", "guide", "x_train", "fields")
    }
    assert own == options
    text = inspect.getdoc(fit)
    assert text is not None
    named = re.findall(
        r"^    ([\w, *]+):", text[text.index("Args:") : text.index("Returns:")], re.M
    )
    assert {name.strip(" *") for line in named for name in line.split(",")} == set(signature)
    assert {each.name for each in fields(Settings)} <= {each.name for each in fields(Train)} & set(
        own
    )
