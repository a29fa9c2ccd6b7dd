"""State of the process: evaluations do without what changes a number, trainings take it and say so;
one thread at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Distribution

import pyro_vae as pv
from pyro_vae import guides, models
from pyro_vae.data.loaders import make_source
from tests.evaluation import ambient_check
from tests.support.children import SERVER

X = (torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.3).float()
QUICK: dict[str, Any] = {
    "device": "cpu",
    "compile": "off",
    "progress": False,
    "batch_size": 20,
    "num_steps": 12,
}
DEFAULTS = {"threads": 1, "precision": "float32"}


def pair() -> tuple[models.GenerativeModel, guides.MeanField]:
    """Ours, freshly initialised."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = {"hidden": (16,)}
        model = models.GenerativeModel(
            models.StandardNormal(3), models.Bernoulli(3, (1, 6, 6), **net)
        )
        return model, guides.MeanField((1, 6, 6), 3, **net)


def check(*arguments: str) -> Any:
    """What `ambient_check.py` finds, in a process of its own."""
    receive, send = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=ambient_check.main, args=(send, *arguments))
    child.start()
    send.close()
    found = receive.recv()
    child.join()
    return found


# ---- evaluations


def evaluations_are_the_defaults(word: str, settings: list[str]) -> None:
    """Equal numbers, nothing seen by the programs but float32, everything as it was afterwards;
    after an error too.
    """
    found = check(word, "nothing", *settings)
    plain = found["nothing"]
    assert (
        plain["restored"]
        and "told to fail" in plain["error"]
        and plain["protocol"] | DEFAULTS == plain["protocol"]
    )
    for setting in settings:
        assert found[setting] == plain, setting
    assert plain["seen"] == [[False, ["ieee"]]]


def test_autocast_and_reduced_products_never_reach_an_evaluation() -> None:
    evaluations_are_the_defaults("briefly", ["autocast", "allow_tf32+mkldnn.matmul bf16"])


@pytest.mark.slow
def test_no_setting_of_precision_by_torch_s_old_names_or_new_reaches_any_evaluation() -> None:
    alone = [
        "autocast",
        "medium",
        "high",
        "highest",
        "allow_tf32",
        "cudnn without tf32",
        "all tf32",
        "all bf16",
    ]
    alone += [
        "all ieee",
        "cuda tf32",
        "cuda.matmul tf32",
        "cudnn.conv tf32",
        "mkldnn.matmul bf16",
        "mkldnn.conv tf32",
    ]
    mixed = [
        "medium+all tf32",
        "all tf32+medium",
        "allow_tf32+cuda ieee",
        "autocast+high+mkldnn.matmul bf16",
    ]
    evaluations_are_the_defaults("evaluated", alone + mixed)


@pytest.mark.slow
def test_dtype_determinism_and_threads_are_taken_as_they_are_and_said() -> None:
    told = {
        "float64": {"default_dtype": "float64"},
        "deterministic": {"deterministic": "on"},
        "warn only": {"deterministic": "warn only"},
        "two threads": {"threads": 2},
    }
    found = check("evaluated", "nothing", *told)
    for setting, words in told.items():
        assert found[setting]["protocol"] == found["nothing"]["protocol"] | words
        assert found[setting]["restored"] and found[setting]["seen"] == [[False, ["ieee"]]]


@pytest.mark.parametrize("length", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_settings_come_back_with_all_that_follows_from_them(length: int) -> None:
    """Whatever was set before, by torch's old names or new, and whatever is set after: as if
    nothing had been.
    """
    assert check("histories", str(length)) == {"histories": 15**length, "differing": []}


def test_a_callback_s_evaluation_is_in_float32_and_the_training_goes_on_in_bfloat16() -> None:
    numbers, dtypes = [], []

    def score(end: pv.EpochEnd) -> None:
        numbers.append(pv.log_marginal(*trained, X, num_samples=20, compile="off").log_px)
        dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    trained = pair()
    with torch.autocast("cpu", torch.bfloat16):
        pv.fit(*trained, X, callbacks=[score], **QUICK)
    assert torch.equal(
        numbers[-1], pv.log_marginal(*trained, X, num_samples=20, compile="off").log_px
    )
    assert set(dtypes) == {torch.bfloat16}


# ---- trainings


@pytest.mark.parametrize(
    "settings",
    [
        ["nothing", "autocast+warn only", "deterministic"],
        pytest.param(["nothing", "autocast", "medium", "all tf32+float64"], marks=pytest.mark.slow),
    ],
)
def test_a_training_says_what_it_takes_that_is_unusual_and_nothing_else(
    settings: list[str],
) -> None:
    told = {
        "nothing": [],
        "autocast": ["autocast bfloat16"],
        "medium": ["matmul precision bf16"],
        "all tf32+float64": [
            "matmul precision tf32",
            "conv precision tf32",
            "default dtype float64",
        ],
        "deterministic": ["deterministic on"],
        "autocast+warn only": ["autocast bfloat16", "deterministic warn only"],
    }
    found = check("trained", *settings)
    notes = {each: found[each]["note"].split("; ") for each in settings}
    assert {
        each: [phrase for phrase in note if phrase not in notes["nothing"]]
        for each, note in notes.items()
    } == {each: told[each] for each in settings}
    assert all(each["restored"] for each in found.values())
    plain = found["nothing"]["loss"]
    for setting in settings:
        if "float64" not in setting and setting != "medium":  # these may round as before
            assert (found[setting]["loss"] == plain) == ("autocast" not in setting)


@pytest.mark.parametrize("tier", ["off", "graph"])
def test_under_autocast_every_step_casts_the_parameters_as_they_are(tier: str) -> None:
    """As SVI with a block of autocast for each step: within one block torch's kept casts never
    follow the optimiser.
    """
    ours, theirs, start = pair(), pair(), pair()
    with torch.autocast("cpu", torch.bfloat16):
        pv.fit(*ours, X, objective="Trace_ELBO", schedule="constant", **QUICK | {"compile": tier})
    source = make_source(X, {}, 20, torch.device("cpu"))
    batches = [x for epoch in range(1, 5) for x, _ in source.shuffled(0, epoch)]
    svi = SVI(
        *(poutine.scale(each, scale=1 / 20) for each in theirs),
        pyro.optim.Adam({"lr": 1e-3}),
        Trace_ELBO(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for x in batches:
            with torch.autocast("cpu", torch.bfloat16):
                svi.step(x)
    for program, other, before in zip(ours, theirs, start, strict=True):
        for own, their, first in zip(
            program.parameters(), other.parameters(), before.parameters(), strict=True
        ):
            torch.testing.assert_close(own, their, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(own, first, atol=2e-3)


@pytest.mark.parametrize("tier", ["off", "graph"])
def test_a_rounded_training_is_that_of_layers_written_with_casts(tier: str) -> None:
    """Parameters and their updates in float32; the note has the error on the first batch's ELBO."""

    def cast(layer: torch.nn.Linear) -> None:
        def forward(x: torch.Tensor) -> torch.Tensor:
            arguments = (each.bfloat16() for each in (x, layer.weight, layer.bias))
            return torch.nn.functional.linear(*arguments).float()

        layer.forward = forward

    ours, written, quick = pair(), pair(), QUICK | {"compile": tier}
    for module in (each for program in written for each in program.modules()):
        if isinstance(module, torch.nn.Linear):
            cast(module)
    history = pv.fit(*ours, X, precision="bfloat16", **quick)
    expected = pv.fit(*written, X, **quick)
    assert history.train == expected.train and history.compile == tier
    for own, other in zip(ours, written, strict=True):
        for a, b in zip(own.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b) and a.dtype == torch.float32
    error = float(history.note.partition("bfloat16 products: ")[2].partition(" nats an image")[0])
    assert 0 < abs(error) < 0.1 and "bfloat16" not in expected.note
    with pytest.raises(pv.UserError, match="float64"):
        pv.fit(*(program.double() for program in ours), X, precision="bfloat16", **quick)


def test_a_training_that_goes_on_under_other_settings_says_so() -> None:
    states: list[Any] = []
    pv.fit(*pair(), X, callbacks=[lambda end: states.append(end.training_state())], **QUICK)
    again = pv.fit(*pair(), X, resume=states[0], **QUICK)
    with torch.autocast("cpu", torch.bfloat16):
        other = pv.fit(*pair(), X, resume=states[0], **QUICK)
    assert "not bit for bit" not in again.resumed[-1]
    assert "not bit for bit" in other.resumed[-1] and "autocast bfloat16 here" in other.resumed[-1]


def test_fit_and_refine_serve_under_no_grad() -> None:
    plain, within = pair(), pair()
    expected = pv.fit(*plain, X, **QUICK).train[-1].loss
    with torch.no_grad():
        assert pv.fit(*within, X, **QUICK).train[-1].loss == expected
        refined = pv.refine(
            *within, X[:6], num_steps=5, num_samples=20, num_particles=2, device="cpu"
        )
    assert refined.elbo_refined > refined.elbo_amortized
    with torch.inference_mode(), pytest.raises(pv.UserError, match="nothing to train"):
        pv.fit(*pair(), X, **QUICK)


# ---- threads


def flags() -> tuple[bool, bool]:
    """Whether torch and Pyro check arguments."""
    return Distribution._validate_args, pyro.poutine.util.is_validation_enabled()


CALLS: dict[str, Callable[[], Any]] = {
    "fit": lambda: pv.fit(*pair(), X, **QUICK),
    "log_marginal": lambda: pv.log_marginal(*pair(), X, num_samples=20, compile="off"),
    "check_pair": lambda: pv.check_pair(*pair(), X),
    "encode": lambda: pv.encode(*pair(), X, device="cpu"),
    "sample": lambda: pv.sample(pair()[0], 4, device="cpu"),
    "log_weights": lambda: pv.log_weights(*pair(), X),
}


def test_a_second_thread_is_refused_and_leaves_the_first_as_it_was() -> None:
    """Each of them called by a thread that a callback starts and joins: waiting would never end."""
    said: list[str] = []

    def other(call: Callable[[], Any]) -> None:
        try:
            call()
        except pv.UserError as error:
            said.append(str(error))

    def in_threads(end: pv.EpochEnd) -> None:
        for call in CALLS.values():
            thread = threading.Thread(target=other, args=(call,))
            thread.start()
            thread.join()

    before = flags()
    alone, disturbed = (
        pv.fit(*pair(), X, **QUICK),
        pv.fit(*pair(), X, callbacks=[in_threads], **QUICK),
    )
    assert len(said) == len(CALLS) * len(disturbed.train)
    assert all("use processes" in text for text in said)
    assert disturbed.train == alone.train
    assert flags() == before == (True, True)
    pv.log_weights(*pair(), X)  # and the next turn is free


@pytest.mark.slow
def test_threads_at_once_give_serial_numbers_or_the_refusal_and_the_flags_stay() -> None:
    expected = [record.loss for record in pv.fit(*pair(), X, **QUICK).train]
    before, results = flags(), []

    def work(
        own: Any,
    ) -> None:  # built beforehand: what a thread draws would be missing from another's noise
        try:
            results.append([record.loss for record in pv.fit(*own, X, **QUICK).train])
        except pv.UserError as error:
            results.append(str(error))

    for _ in range(8):
        both = [threading.Thread(target=work, args=(pair(),)) for _ in range(3)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert len(results) == 24 and expected in results
    assert all(each == expected or "use processes" in each for each in results)
    assert flags() == before == (True, True)
