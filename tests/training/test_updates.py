"""A training step is the optimiser's own on the loss's own gradients, in whatever form; one that is
not finite leaves no trace.
"""

import shutil
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.compile.trace import NotStageable, trace
from pyro_vae.data.batches import Resident
from pyro_vae.training.fit import fit
from pyro_vae.training.select_step import CAPTURES, CapturedStep, Rows, select_step
from pyro_vae.training.train_step import StagedStep, TrainStep
from pyro_vae.training.updates import (
    Health,
    Update,
    adam_state,
    gradient_norm,
    is_plain_adam,
    make_state,
    written_adam,
)
from tests.support.grids import pairwise, thinned
from tests.support.steps import images, needs_compiler, replayed_on_cpu, small_pair, step_of

CPU = torch.device("cpu")


def chosen(
    eager: TrainStep,
    optimizer: torch.optim.Optimizer,
    tier: str,
    grad_clip: float | None = None,
    reduce: object = None,
    health: Health | None = None,
) -> tuple[TrainStep, str]:
    """The step of this tier for batches of 16 images, and the line on it."""
    update = Update(optimizer, eager.parameters, health or Health.on(CPU), grad_clip, reduce)  # type: ignore[arg-type]
    eager = TrainStep(eager.loss, eager.parameters, update)
    source = Resident(images(70), {}, 16, CPU)
    with eager.loss.pair.active(training=True):
        step, _, note = select_step(eager, tier, 100, source)
    return step, note


def step_in(
    tier: str, optim: str = "Adam", grad_clip: float | None = None, **options: float
) -> tuple[TrainStep, list[Tensor]]:
    """A fresh pair's step in this tier, and its parameters."""
    eager, _, _ = step_of("MLP")
    optimizer = getattr(torch.optim, optim)(eager.parameters, lr=1e-2, **options)
    step, note = chosen(eager, optimizer, tier, grad_clip)
    assert step.tier == tier, note
    return step, list(eager.parameters)


def run(step: TrainStep, steps: int = 20) -> None:
    torch.manual_seed(4)
    with step.loss.pair.active(training=True):
        for i in range(steps):
            step.update.set_rate(1.0 - i / steps)
            step(images(16, i), {"index": torch.arange(16)})


def plain_loop(optim: str, grad_clip: float | None, **options: float) -> list[Tensor]:
    """The same training as torch's own users write it."""
    eager, _, _ = step_of("MLP")
    optimizer = getattr(torch.optim, optim)(eager.parameters, lr=1e-2, **options)
    torch.manual_seed(4)
    with eager.loss.pair.active(training=True):
        for i in range(20):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1.0 - i / 20)
            optimizer.zero_grad()
            (eager.loss.step(images(16, i), {"index": torch.arange(16)}).loss / 16).backward()
            if grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(eager.parameters, grad_clip)
            optimizer.step()
    return list(eager.parameters)


OPTIMIZERS = [
    ("Adam", {"fused": True}),
    ("Adam", {"fused": True, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-4}),
    ("AdamW", {"fused": True, "weight_decay": 0.1}),
    ("Adam", {"fused": True, "amsgrad": True}),
    ("SGD", {"fused": True, "momentum": 0.9}),
    ("RMSprop", {}),
]


@pytest.mark.parametrize(("optimizer", "grad_clip"), thinned(OPTIMIZERS, [None, 0.5]))
def test_every_form_is_the_plain_loop_to_the_last_bit(
    optimizer: tuple[str, dict], grad_clip: float | None
) -> None:
    optim, options = optimizer
    expected = plain_loop(optim, grad_clip, **options)
    for tier in ("off", "graph"):
        step, parameters = step_in(tier, optim, grad_clip, **options)
        run(step)
        assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True)), tier


def test_adam_written_out_is_torchs_own_in_float64() -> None:
    torch.manual_seed(0)
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        values = [torch.randn(3, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
        ours, theirs = ([torch.nn.Parameter(value.clone()) for value in values] for _ in range(2))
        optim, own = (
            kind(p, lr=0.03, weight_decay=0.2, betas=(0.7, 0.95), eps=1e-3) for p in (theirs, ours)
        )
        make_state(own)
        update = Update(own, ours, Health.on(CPU))
        for left_out in (0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0):
            gradients = [torch.randn_like(value) for value in ours]
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient.clone()
            if left_out:
                gradients = [torch.full_like(value, torch.nan) for value in ours]
            else:
                optim.step()
            with torch.no_grad():
                written_adam(update, ours, gradients, torch.tensor(left_out))
        assert all(
            torch.allclose(a, b, rtol=1e-13, atol=1e-14) for a, b in zip(ours, theirs, strict=True)
        )


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("optim", "options", "grad_clip"), [(*OPTIMIZERS[1], 0.5)])
def test_the_compiled_form_follows_the_plain_loop(
    optim: str, options: dict, grad_clip: float | None
) -> None:
    expected = plain_loop(optim, grad_clip, **options)
    step, parameters = step_in("inductor", optim, grad_clip, **options)
    assert isinstance(step, StagedStep) and step.inside
    run(step)
    for found, value in zip(parameters, expected, strict=True):
        assert float((found - value).detach().abs().max()) < 1e-5  # of steps of 1e-2
    steps, _, _ = adam_state(step.update.optim, parameters)
    assert {number.item() for number in steps} == {20.0}, "the optimiser's own state was used"


def poison(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.numel()).reshape(x.shape) == 3, torch.nan, x)


@pytest.mark.parametrize(
    ("tier", "optim", "skip"),
    [
        *pairwise(("off", "graph"), ("Adam", "RMSprop"), (False, True)),
        pytest.param("inductor", "Adam", True, marks=[needs_compiler, pytest.mark.slow]),
    ],
)
def test_a_step_that_is_not_finite_leaves_no_trace(tier: str, optim: str, skip: bool) -> None:
    """Skipping: the parameters are those of a training without that batch; else those before it,
    whatever follows.
    """
    fused = {"fused": True} if optim == "Adam" else {}
    results = []
    for poisoned in (True, False):
        eager, _, fields = step_of("MLP")
        optimizer = getattr(torch.optim, optim)(eager.parameters, lr=1e-2, **fused)
        health = Health.on(CPU, skip=skip)
        step, _ = chosen(eager, optimizer, tier, health=health)
        with eager.loss.pair.active(training=True):
            for i in range(6):
                if i == 3 and not poisoned and skip:
                    continue
                if i >= 3 and not poisoned and not skip:
                    break
                torch.manual_seed(i)
                step.update.set_rate(1.0)
                step(poison(images(16, i)) if i == 3 else images(16, i), fields)
        first_bad, num_bad = health.read()
        assert (first_bad, num_bad > 0) == ((3, True) if poisoned else (None, False))
        results.append([p.detach().clone() for p in eager.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_kernel_is_called_directly_for_plain_adam_alone() -> None:
    """Its private name in torch is noticed here, where it is lost."""
    for optim, options, inside in (
        ("Adam", {"fused": True}, True),
        ("Adam", {}, False),
        ("RMSprop", {}, False),
    ):
        step = step_in("graph", optim, **options)[0]
        assert isinstance(step, StagedStep) and step.inside == inside, optim
    parameter = torch.nn.Parameter(torch.zeros(2))
    hooked = torch.optim.Adam([parameter], fused=True)
    assert is_plain_adam(hooked)
    hooked.register_step_post_hook(
        lambda *_: None
    )  # of `step`, which the kernel's own call would pass over
    for other in (
        torch.optim.SGD([parameter], lr=1.0),
        torch.optim.Adam([parameter], amsgrad=True, fused=True),
        hooked,
    ):
        assert not is_plain_adam(other)


def test_the_state_is_made_without_a_step() -> None:
    parameter = torch.nn.Parameter(torch.randn(4))
    before, optim = (
        parameter.detach().clone(),
        torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5, fused=True),
    )
    make_state(optim)
    assert torch.equal(parameter.detach(), before) and parameter.grad is None
    assert all(float(tensor.abs().sum()) == 0.0 for tensor in optim.state[parameter].values())


def test_gradients_are_at_hand_between_backward_and_update() -> None:
    """Halving them there is half the learning rate of SGD."""
    results = []
    for halve in (True, False):
        eager, x, fields = step_of("MLP")
        optimizer = torch.optim.SGD(eager.parameters, lr=0.1 if halve else 0.05)
        reduce = (lambda gradients, _: torch._foreach_mul_(list(gradients), 0.5)) if halve else None
        step, _ = chosen(eager, optimizer, "graph", reduce=reduce)
        with eager.loss.pair.active(training=True):
            torch.manual_seed(0)
            step(x, fields)
        results.append([p.detach().clone() for p in eager.parameters])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(*results, strict=True))


def test_the_norm_is_that_of_all_gradients_together() -> None:
    gradients = [torch.randn(3, 4), torch.randn(7)]
    assert torch.allclose(
        gradient_norm(gradients), torch.cat([g.flatten() for g in gradients]).norm()
    )


def test_auto_takes_the_graph_for_little_work_and_says_why() -> None:
    eager, _, _ = step_of("MLP")
    optim = torch.optim.Adam(eager.parameters, fused=True)
    step, why = chosen(eager, optim, "auto")
    assert step.tier == "graph" and "too short for compiling to pay" in why


def test_without_a_compiler_the_graph_serves_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    eager, _, _ = step_of("MLP")
    optim = torch.optim.Adam(eager.parameters, fused=True)
    step, why = chosen(eager, optim, "inductor")
    assert step.tier == "graph" and "g++" in why


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("net", ["MLP", "Conv"])
def test_two_hundred_compiled_steps_follow_the_eager_ones(net: str) -> None:
    """Losses within 1e-6 relative, parameters within 1e-5: ragged batches, a falling rate,
    clipping, KL warm-up.
    """
    losses, parameters = [], []
    for tier in ("off", "inductor"):
        model, guide = small_pair(net)
        history = fit(
            model,
            guide,
            images(200),
            num_steps=200,
            batch_size=40,
            compile=tier,
            progress=False,
            seed=2,
            kl_warmup=5,
            grad_clip=9.0,
        )
        assert history.compile == tier, history.note
        losses.append(torch.tensor([record.loss for record in history.train], dtype=torch.float64))
        parameters.append([p.detach() for p in (*model.parameters(), *guide.parameters())])
    assert float(((losses[1] - losses[0]) / losses[0]).abs().max()) < 1e-6
    if (
        net == "MLP"
    ):  # a bias before a BatchNorm has gradient 0, and Adam normalises its rounding noise
        assert max(float((a - b).abs().max()) for a, b in zip(*parameters, strict=True)) < 1e-5


def test_a_captured_training_is_the_one_that_is_not_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a replay on the CPU: rows are gathered, odd batches take the inner step, the
    state is put back.
    """
    results = []
    for captured in (False, True):
        eager, _, _ = step_of("MLP")
        optimizer = torch.optim.Adam(eager.parameters, lr=1e-2, fused=True)
        health = Health.on(CPU)
        step, _ = chosen(eager, optimizer, "graph", health=health)
        source: Resident | Rows = Resident(images(70), {}, 16, CPU)
        with eager.loss.pair.active(training=True):
            if captured:
                monkeypatch.setitem(CAPTURES, "cpu", replayed_on_cpu)
                source = Rows(source)  # type: ignore[arg-type]
                step = CapturedStep(step, source)  # type: ignore[arg-type]
            torch.manual_seed(0)
            sums = []
            for epoch in range(2):
                for batch in source.shuffled(5, epoch):
                    step.update.set_rate(0.5)
                    sums.append(step(*batch).clone())
                    x, fields = source.images(batch)
                    assert x.shape[1:] == (1, 8, 8) and len(fields["index"]) == len(x)
        assert health.read()[0] is None and int(health.step) == 10
        results.append([*sums, *(p.detach().clone() for p in eager.parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device, and there is none"
)
def test_on_cuda_the_step_is_one_graph_whose_noise_goes_on() -> None:
    torch.manual_seed(0)
    model, guide = small_pair()
    history = fit(
        model,
        guide,
        images(200),
        num_steps=60,
        batch_size=40,
        compile="graph",
        device="cuda",
        progress=False,
    )
    assert "CUDA graph" in history.note
    assert len({record.loss for record in history.train}) == len(history.train)
    assert history.train[-1].elbo > history.train[0].elbo


LAYOUTS = {
    "einsum": lambda x, w: torch.einsum("bi,di->bd", x, w),
    "transposed": lambda x, w: (x.unsqueeze(-1) * w.t()).sum(1),
    "expanded": lambda x, w: x.sum(-1, keepdim=True) + w.sum() * torch.ones(6),
    "sliced": lambda x, w: x @ w[::2].t().repeat(1, 2),
    "permuted": lambda x, w: x @ w.reshape(2, 3, 2).permute(2, 0, 1).reshape(2, 6),
}
"""Uses of a (6, 2) weight whose gradient comes in another memory layout than the weight's, beside
some that do not.
"""


class Weighted(torch.nn.Module):
    """Three such weights, two of which are added up and so share one gradient, and a transposed
    parameter.
    """

    def __init__(self, use: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*size: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(
                0.3 * torch.randn(*size, generator=generator, dtype=torch.float64)
            )

        self.use, self.first, self.second = use, weight(6, 2), weight(6, 2)
        self.turned = torch.nn.Parameter(weight(2, 6).detach().t())
        torch.manual_seed(1)
        self.encode = torch.nn.Linear(6, 2, dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        pyro.module("weighted", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = LAYOUTS[self.use](z, self.first + self.second) + z @ self.turned.t()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("weighted", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 0.5).to_event(1))


@pytest.mark.parametrize(
    ("use", "optim", "tier"),
    thinned(LAYOUTS, ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"], ["off", "graph"]),
)
def test_a_gradient_in_another_layout_than_its_parameters_trains_as_in_torch(
    use: str, optim: str, tier: str
) -> None:
    """Against Pyro's ELBO, ``backward``, torch's clipping and its optimiser's plain loop."""
    x = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours, theirs = Weighted(use), Weighted(use)
    options = {
        "num_steps": 5,
        "batch_size": 16,
        "learning_rate": 0.05,
        "schedule": "constant",
        "grad_clip": 2.0,
    }
    history = fit(
        ours.model,
        ours.guide,
        x,
        "Trace_ELBO",
        optimizer=optim,
        compile=tier,
        progress=False,
        **options,
    )  # type: ignore[arg-type]
    assert history.compile == tier, history.note
    optimizer = getattr(torch.optim, optim)(theirs.parameters(), lr=0.05, foreach=False)
    order = Resident(x, {}, 16, CPU)
    torch.manual_seed(0)
    for epoch in range(1, 6):
        ((batch, _),) = order.shuffled(0, epoch)
        optimizer.zero_grad()
        (
            pyro.infer.Trace_ELBO().differentiable_loss(theirs.model, theirs.guide, batch) / 16
        ).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 2.0)
        optimizer.step()
    pyro.clear_param_store()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_a_parameter_that_a_step_does_not_reach_gets_no_update() -> None:
    """Adam would move it by its momentum, AdamW by its decay; torch leaves out what has no
    gradient.
    """

    class Sometimes(Weighted):
        def model(self, x: Tensor) -> None:
            pyro.module("weighted", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                weight = self.first if len(x) == 16 else self.second
                pyro.sample("x", dist.Normal(z @ weight.t(), 1.0).to_event(1), obs=x)

    x = torch.randn(26, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for tier in ("off", "graph"):
        v, moved = Sometimes("einsum"), []
        seen = [v.first.detach().clone(), v.second.detach().clone()]

        def watch(
            _: object, v: Weighted = v, seen: list[Tensor] = seen, moved: list[bool] = moved
        ) -> None:
            moved.append(torch.equal(v.turned, Weighted("einsum").turned))

        fit(v.model, v.guide, x, "Trace_ELBO", num_steps=4, batch_size=16, optimizer="AdamW(weight_decay=0.5)",
            learning_rate=0.1, compile=tier, callbacks=[watch], progress=False)  # fmt: skip
        assert moved == [True, True], "in no step reached"
        assert not torch.equal(v.first, seen[0]) and not torch.equal(v.second, seen[1]), (
            "each by its own batches"
        )


@pytest.mark.parametrize("optim", ["SGD(momentum=0.9)", "RMSprop", "AdamW(weight_decay=0.5)"])
def test_no_gradient_of_a_step_before_is_used_again(optim: str) -> None:
    """Batches of two sizes reach other parameters: in either form, as in torch, the others stay
    where they are.
    """

    class Sometimes(Weighted):
        def model(self, x: Tensor) -> None:
            pyro.module("weighted", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                weight = self.first if len(x) == 16 else self.second
                pyro.sample("x", dist.Normal(z @ weight.t(), 1.0).to_event(1), obs=x)

    x = torch.randn(26, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = []
    for tier in ("off", "graph"):
        v = Sometimes("einsum")
        fit(v.model, v.guide, x, "Trace_ELBO", num_steps=6, batch_size=16, optimizer=optim, learning_rate=0.05,
            compile=tier, schedule="constant", progress=False)  # fmt: skip
        found.append([*v.parameters()])
    for eager, staged in zip(*found, strict=True):
        torch.testing.assert_close(eager, staged, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tier", ["off", "graph"])
def test_each_gradient_has_memory_of_its_own(tier: str) -> None:
    """An optimiser that changes them in place changes each once; autograd gives those of a + b as
    one tensor.
    """

    class Halved(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.mul_(0.5)
            super().step()

    class Summed(Weighted):
        """With a bias in two parts."""

        def __init__(self) -> None:
            super().__init__("einsum")
            self.bias, self.rest = (
                torch.nn.Parameter(torch.zeros(6, dtype=torch.float64)) for _ in "ab"
            )

        def model(self, x: Tensor) -> None:
            super().model(x - (self.bias + self.rest))

    x = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = []
    for optimizer, rate in ((Halved, 0.1), (torch.optim.SGD, 0.05)):
        v = Summed()
        fit(v.model, v.guide, x, "Trace_ELBO", num_steps=3, batch_size=16, optimizer=optimizer, learning_rate=rate,
            compile=tier, schedule="constant", progress=False)  # fmt: skip
        found.append([*v.parameters()])
    for halved, plain in zip(*found, strict=True):
        torch.testing.assert_close(halved, plain, rtol=1e-9, atol=1e-12)


def test_a_hook_on_a_gradient_means_eager_pyro() -> None:
    v, called = Weighted("einsum"), []
    v.first.register_post_accumulate_grad_hook(
        lambda parameter: called.append(parameter.grad is not None)
    )
    x = torch.randn(16, 6, dtype=torch.float64)
    history = fit(
        v.model,
        v.guide,
        x,
        "Trace_ELBO",
        num_steps=3,
        batch_size=16,
        compile="graph",
        progress=False,
    )
    assert history.compile == "off" and "hook" in history.note and called.count(True) == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_fit_is_the_replayed_one(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several steps a launch, each at its own rate and KL weight; a last small batch, and an epoch
    that is cut short, take theirs one by one.
    """
    options: dict[str, Any] = {"num_steps": 13, "batch_size": 16, "kl_warmup": 2}
    launches = list[int]()
    several = CapturedStep._several
    monkeypatch.setattr(
        CapturedStep,
        "_several",
        lambda self, *given: launches.append(len(given[0])) or several(self, *given),
    )
    found = []
    for capture in (False, True):
        if capture:
            monkeypatch.setitem(CAPTURES, "cpu", replayed_on_cpu)
        history = fit(
            *small_pair(),
            images(70),
            x_valid=images(20, 2),
            compile="graph",
            precision=precision,
            device="cpu",
            progress=False,
            **options,
        )
        assert ("captured as a CUDA graph, 4 steps a launch" in history.note) == capture
        found.append((history.train, history.valid))
    assert found[0] == found[1]
    assert launches == [4] * (1 + 2)  # of the capture, and of two whole epochs


def test_a_step_in_which_the_host_reads_is_not_captured() -> None:
    """A Cholesky factor's error code is read by the host: known from the trace, before a capture
    that would fail.
    """

    def factor(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.linalg.cholesky(x @ x.mT + torch.eye(3))]

    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    assert trace(factor, [x]).host_reads == ["_linalg_check_errors"]
    assert trace(lambda x: [torch.linalg.cholesky_ex(x)[0]], [torch.eye(3)]).host_reads == []


def test_a_capture_that_fails_is_one_sentence_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager, _, _ = step_of("MLP")
    optimizer = torch.optim.Adam(eager.parameters, lr=1e-2, fused=True)
    step, _ = chosen(eager, optimizer, "graph", health=Health.on(CPU))
    before, state = [p.detach().clone() for p in eager.parameters], torch.get_rng_state()

    def failing(inner: Any, device: torch.device) -> Any:
        inner()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(CAPTURES, "cpu", failing)
    rows = Rows(Resident(images(70), {}, 16, CPU))
    with pytest.raises(NotStageable, match=r"no CUDA graph .*not permitted"):
        CapturedStep(step, rows)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(before, eager.parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
