"""A training taken up again from any step is the training that was never stopped; what is not that
training is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import Checkpoints, EarlyStopping, TrainingState, UserError, fit, guides, models
from pyro_vae.compile.trace import missing_compiler
from pyro_vae.data.loaders import make_source
from pyro_vae.pair.runtime import Pair
from pyro_vae.training import checkpoint, checkpoint_files
from pyro_vae.training.state import differences, this_place
from tests.support.pairs import PIXELS, fresh
from tests.support.training import CPU, QUICK, Images, X, our_pair, same

LONG: dict[str, Any] = {
    **QUICK,
    "num_steps": 14,
    "kl_warmup": 2,
    "grad_clip": 1.0,
    "x_valid": X[:20],
    "learning_rate": 0.01,
}
"""Four passes of 3 steps, the last one with 2 more."""


class Keep:
    """Copies of the states after the given steps."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.states = steps, {}  # type: ignore[var-annotated]

    def __call__(self, end: Any) -> None: ...

    def at_boundary(self, state: Callable[[], TrainingState], after: str) -> None:
        """After these steps, but not again after their epoch."""
        held = state()
        if held.step in self.steps and held.step not in self.states:
            self.states[held.step] = held.copy()


def tensors(model: Any, guide: Any) -> list[Tensor]:
    """All that training changes."""
    return [tensor.detach().clone() for tensor in Pair.of(model, guide).tensors()]


def batchnorm_pair() -> tuple[Any, Any]:
    """With buffers that a step changes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arguments: dict[str, Any] = {"net": "Conv", "channels": (3,)}
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(2, (1, 4, 3), **arguments)
        )
        return model, guides.MeanField((1, 4, 3), 2, **arguments)


CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any]]] = {
    "ours": (our_pair, {}),
    "graph": (our_pair, {"compile": "graph"}),
    "SGD": (our_pair, {"optimizer": "SGD(momentum=0.9)"}),
    "RMSprop": (our_pair, {"optimizer": "RMSprop"}),
    "skip": (our_pair, {"on_divergence": "skip"}),
    "dynamic": (our_pair, {"binarize": "dynamic"}),
    "frozen": (our_pair, {"freeze": "model"}),
    "begun from another": (our_pair, {"init": our_pair(seed=1)}),
    "Dataset": (our_pair, {"data": Images("tensor")}),
    "bound methods": (lambda: fresh("bound methods"), {}),
    "functions": (lambda: fresh("functions"), {}),
    "PyroParams": (lambda: fresh("PyroParams"), {}),
    "BatchNorm": (
        batchnorm_pair,
        {"data": X.reshape(-1, 1, 4, 3), "x_valid": X[:20].reshape(-1, 1, 4, 3)},
    ),
}


INDUCTOR = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_compiler(CPU)), reason=missing_compiler(CPU) or "there is a compiler"
    ),
]


STEPS = {"ours": (2, 6, 11)} | {
    case: ((2, 6, 11)[number % 3],) for number, case in enumerate(CASES) if case != "ours"
}


@pytest.mark.parametrize("case", [*CASES, pytest.param("inductor", marks=INDUCTOR)])
def test_a_resumed_training_is_the_whole_one(case: str) -> None:
    """From the first epoch, an epoch's end and the last pass, or one of these in turn: parameters,
    buffers, optimiser and records, to the last bit.
    """
    make, options = CASES.get(case, (our_pair, {"compile": case}))
    options = {**LONG, **options}
    data = options.pop("data", X)
    whole, keep, stopping = make(), Keep(2, 6, 11, 14), EarlyStopping(patience=99)
    history = fit(*whole, data, callbacks=[stopping, keep], **options)
    for step in STEPS.get(case, (2, 6, 11)):
        again, end = make(), Keep(14)
        torch.rand(3)  # what the caller has drawn does not matter
        resumed = fit(
            *again,
            data,
            callbacks=[EarlyStopping(patience=99), end],
            resume=keep.states[step],
            **options,
        )
        assert same(tensors(*whole), tensors(*again))
        assert resumed.train == history.train and resumed.valid == history.valid
        for part in ("optimizer", "random"):
            ours, theirs = (getattr(state.states[14], part) for state in (end, keep))
            assert str(ours) == str(theirs)
        assert (
            len(resumed.resumed) == 1
            and f"at step {step}" in resumed.resumed[0]
            and not history.resumed
        )


def test_early_stopping_goes_on_counting() -> None:
    options = {
        **QUICK,
        "num_epochs": 40,
        "schedule": "constant",
        "learning_rate": 0.1,
        "x_valid": 1 - X[:16],
    }
    whole, keep = our_pair(), Keep(4)
    history = fit(*whole, X[:16], callbacks=[EarlyStopping(patience=5), keep], **options)
    again, stopping = our_pair(), EarlyStopping(patience=5)
    resumed = fit(*again, X[:16], callbacks=[stopping], resume=keep.states[4], **options)
    assert history.stopped and resumed.stopped == history.stopped and resumed.valid == history.valid
    assert (
        same(tensors(*whole), tensors(*again))
        and stopping.best == resumed.valid[stopping.best.epoch - 1]
    )  # type: ignore[union-attr]


def test_a_finished_training_stays_as_it_is() -> None:
    whole, keep = our_pair(), Keep(14)
    history = fit(*whole, X, callbacks=[keep], **LONG)
    again = our_pair()
    ended: list[Any] = []
    resumed = fit(*again, X, callbacks=[ended.append], resume=keep.states[14], **LONG)
    assert (
        same(tensors(*whole), tensors(*again))
        and resumed.train == history.train
        and len(ended) <= 1
    )


def test_an_epochs_end_gives_a_state_by_hand(tmp_path: Path) -> None:
    states: list[TrainingState] = []
    whole = our_pair()
    fit(*whole, X, callbacks=[lambda end: states.append(end.training_state())], **LONG)
    states[1].save(tmp_path / "two.pt")
    loaded = TrainingState.load(tmp_path / "two.pt")
    assert (loaded.step, loaded.epochs) == (6, 2) and loaded.settings == states[1].settings
    again = our_pair()
    fit(*again, X, resume=loaded, **LONG)
    assert same(tensors(*whole), tensors(*again))


def test_a_state_is_as_it_was_after_a_resume() -> None:
    """An eager optimiser is without a state before its first step: the saved tensors must not become
    its own.
    """
    states: list[TrainingState] = []
    whole, options = our_pair(), {**LONG, "compile": "off"}
    fit(*whole, X, callbacks=[lambda end: states.append(end.training_state())], **options)
    for _ in range(2):
        again = our_pair()
        fit(*again, X, resume=states[1], **options)
        assert same(tensors(*whole), tensors(*again))


def test_a_folder_of_checkpoints_is_resumed_and_a_damaged_last_one_passed_over(
    tmp_path: Path,
) -> None:
    whole, again = our_pair(), our_pair()
    keep = Checkpoints(tmp_path, minutes=0)
    fit(*whole, X, callbacks=[keep], **LONG)
    assert [path.stem for path in checkpoint_files.complete(tmp_path)] == [
        "step-000000014",
        "step-000000014-2",
    ]
    assert len(checkpoint_files.complete(tmp_path, best=True)) == 1
    checkpoint_files.complete(tmp_path)[-1].write_bytes(b"")
    with pytest.warns(UserWarning, match="step-000000014.pt, is used"):
        resumed = fit(*again, X, callbacks=[Checkpoints(tmp_path)], resume=tmp_path, **LONG)
    assert same(tensors(*whole), tensors(*again)) and "step 14" in resumed.resumed[0]
    assert len(list(tmp_path.glob("*.damaged"))) == 2  # with its digest


OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, {"betas": (0.5, 0.6)}),
    "unfused Adam": (torch.optim.Adam, {"foreach": True}),
    "AMSGrad": (torch.optim.Adam, {"amsgrad": True}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "plain SGD": (torch.optim.SGD, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_new_calls_rate_wins(name: str) -> None:
    """An optimiser that the caller makes is in the settings by its name alone: its numbers are
    those of today's.
    """
    make, options = OPTIMIZERS[name]
    found: list[torch.optim.Optimizer] = []

    def optimizer(rate: float, decay: float) -> Callable[[Any], torch.optim.Optimizer]:
        def made(parameters: Any) -> torch.optim.Optimizer:
            found.append(make(parameters, lr=rate, weight_decay=decay, **options))
            return found[-1]

        return made

    keep, again = Keep(4, 14), our_pair()
    fit(*our_pair(), X, callbacks=[keep], **LONG | {"optimizer": optimizer(0.05, 0.3)})
    state = keep.states[4]
    fit(*again, X, callbacks=[Keep()], resume=state, **LONG | {"optimizer": optimizer(0.0, 0.1)})
    (group,) = found[-1].param_groups
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.0, 0.0, 0.1)
    for role, program in zip(
        ("model", "guide"), again, strict=True
    ):  # at a rate of 0 nothing moves
        kept = state.tensors[role]
        assert all(torch.equal(value, kept[name]) for name, value in program.state_dict().items())


def test_a_matrix_and_its_transposed_view_survive_as_two(tmp_path: Path) -> None:
    """They share their memory, shape and type; and what is one tensor under two names is written
    once.
    """
    model, guide = our_pair()
    square = torch.arange(9.0).reshape(3, 3)
    for name, view in (
        ("square", square),
        ("turned", square.t()),
        ("again", square),
        ("row", square[1]),
    ):
        model.register_buffer(name, view)
    fit(model, guide, X, callbacks=[Checkpoints(tmp_path, minutes=0)], **LONG | {"num_steps": 3})
    held = checkpoint_files.newest(tmp_path).held.sections["model"]
    for name, view in (
        ("square", square),
        ("turned", square.t()),
        ("again", square),
        ("row", square[1]),
    ):
        assert torch.equal(held[name], view)
    assert held["square"].data_ptr() == held["again"].data_ptr()
    other = our_pair()
    other[0].register_buffer("square", torch.zeros(3, 3))
    for name, view in (
        ("turned", torch.zeros(3, 3)),
        ("again", other[0].square),
        ("row", torch.zeros(3)),
    ):
        other[0].register_buffer(name, view)
    fit(*other, X, resume=tmp_path, callbacks=[Checkpoints(tmp_path)], **LONG | {"num_steps": 3})
    assert torch.equal(other[0].square, square) and torch.equal(other[0].turned, square.t())


def test_going_back_to_an_earlier_state_sets_the_later_checkpoints_aside(tmp_path: Path) -> None:
    keep = Keep(4)
    fit(*our_pair(), X, callbacks=[Checkpoints(tmp_path, minutes=0), keep], **LONG)
    state = keep.states[4]

    def stop(end: Any) -> bool:
        return bool(end.train.epoch == 2)

    fit(*our_pair(), X, callbacks=[stop, Checkpoints(tmp_path, minutes=0)], resume=state, **LONG)
    assert [path.stem for path in checkpoint_files.complete(tmp_path)] == [
        "step-000000006",
        "step-000000006-2",
    ]
    assert checkpoint_files.newest(tmp_path).held.sections["training"]["history"]["stopped"]
    assert any(path.name.startswith("step-000000014") for path in tmp_path.glob("*.superseded"))


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    for wrong, words in (
        (3, "resume is a int"),
        (tmp_path, "no checkpoint"),
        (tmp_path / "absent.pt", "no such checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            fit(*our_pair(), X, resume=wrong, **LONG)  # type: ignore[arg-type]


def test_the_best_is_that_of_the_highest_validation_elbo(tmp_path: Path) -> None:
    pair = our_pair()
    states: dict[int, list[Tensor]] = {}
    history = fit(
        *pair, X[:16], num_epochs=25, schedule="constant", learning_rate=0.1, x_valid=1 - X[:16],
        callbacks=[lambda end: states.update({end.train.epoch: tensors(*pair)}) and None, Checkpoints(tmp_path)], **QUICK,
    )  # fmt: skip
    best = max(history.valid, key=lambda record: record.elbo)
    held = checkpoint_files.newest(tmp_path, best=True).held
    assert held.metadata["epoch"] == best.epoch < 25 and held.metadata["elbo"] == best.elbo
    model, guide = our_pair()
    checkpoint.restore(held, model, guide, "best")
    assert same(tensors(model, guide), states[best.epoch])
    with pytest.raises(UserError, match="best checkpoint of a training"):
        TrainingState.from_checkpoint(held, "best.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.02}, "learning_rate 0.01 there, 0.02 here"),
        ({"num_steps": 15}, "num_steps 14 there, 15 here"),
        ({"batch_size": 8}, "batch_size 16 there, 8 here"),
        ({"optimizer": "SGD", "seed": 3}, "optimizer Adam there, SGD here; seed 0 there, 3 here"),
        ({"objective": "Trace_ELBO"}, "objective TraceMeanField_ELBO"),
        ({"x_valid": None}, "x_valid 20 there, 0 here"),
        ({"callbacks": [EarlyStopping()]}, "EarlyStopping"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_is_refused_by_its_differences(change: dict[str, Any], words: str) -> None:
    keep = Keep(5)
    fit(*our_pair(), X, callbacks=[keep], **LONG)
    other = our_pair()
    before = tensors(*other)
    with pytest.raises(UserError, match=words) as error:
        fit(*other, X, resume=keep.states[5], **{**LONG, **change})
    assert "\n" not in str(error.value) and same(before, tensors(*other))


def test_other_programs_are_refused() -> None:
    keep = Keep(5)
    fit(*our_pair(), X, callbacks=[keep], **LONG)
    with pytest.raises(UserError, match="size mismatch"):
        fit(*our_pair(hidden=(9,)), X, resume=keep.states[5], **LONG)


def test_a_dataloader_begins_its_pass_again_and_says_so() -> None:
    loader = DataLoader(TensorDataset(X), batch_size=16, shuffle=True)
    keep = Keep(4)
    options = {key: value for key, value in LONG.items() if key != "x_valid"}
    fit(*our_pair(), loader, callbacks=[keep], **options)
    history = fit(*our_pair(), loader, resume=keep.states[4], **options)
    assert history.num_steps == 14 and "DataLoader can't repeat its order" in history.resumed[0]
    assert [record.step for record in history.train] == [3, 7, 10, 14]  # a whole pass after step 4


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_a_pass_begun_later_is_its_rest(skip: int) -> None:
    for data in (X[:41], TensorDataset(X[:41])):
        source = make_source(data, {}, 16, CPU)
        whole, rest = list(source.shuffled(1, 2)), list(source.shuffled(1, 2, skip))
        assert source.num_batches == len(whole) == 3
        assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[skip:], rest, strict=True))


def test_another_place_is_said_in_a_line() -> None:
    here = this_place(CPU, "graph")
    assert differences(here, here) == ""
    words = differences({**here, "threads": 9, "tier": "inductor"}, here)
    assert (
        "threads 9 there" in words
        and "tier inductor there, graph here" in words
        and "\n" not in words
    )
    assert "GPU" in differences({**here, "device": "H100"}, {**here, "device": "H100"})
    assert str(Path.home()) not in str(here)


def test_the_tier_is_that_of_the_state() -> None:
    keep = Keep(5)
    fit(*our_pair(), X, callbacks=[keep], **{**LONG, "compile": "off"})
    assert keep.states[5].place["tier"] == "off"
    history = fit(*our_pair(), X, resume=keep.states[5], **{**LONG, "compile": "auto"})
    assert history.compile == "off" and history.resumed == ("at step 5, epoch 2",)
    forced = fit(*our_pair(), X, resume=keep.states[5], **{**LONG, "compile": "graph"})
    assert forced.compile == "graph" and "tier off there, graph here" in forced.resumed[0]


def test_a_state_without_its_parts_is_refused(tmp_path: Path) -> None:
    keep = Keep(5)
    fit(*our_pair(), X, callbacks=[keep], **LONG)
    held = keep.states[5].to_checkpoint({})
    for name in ("optimizer", "random"):
        sections = {key: value for key, value in held.sections.items() if key != name}
        with pytest.raises(UserError, match="incomplete"):
            TrainingState.from_checkpoint(checkpoint_files.Checkpoint(sections), "a.pt")
    assert X.shape[1] == PIXELS
