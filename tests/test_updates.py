"""A training step is the optimiser's own on the loss's own gradients, in whatever form; one that is not finite leaves no trace."""

import shutil

import pytest
import torch
from test_staging import images, needs_compiler, small_pair, step_of
from torch import Tensor

from pyro_vae.batches import Resident
from pyro_vae.captured_update import CapturedUpdate
from pyro_vae.compiled_update import CompiledUpdate, adam, make_state
from pyro_vae.health import Health, gradient_norm
from pyro_vae.steps import StagedStep
from pyro_vae.tiers import make_update
from pyro_vae.training import fit
from pyro_vae.updates import OptimizerUpdate, Update, adam_state, fused_adam

CPU = torch.device("cpu")


def updates_of(
    tier: str, optim: str = "Adam", grad_clip: float | None = None, **options: float
) -> tuple[Update, list[Tensor]]:
    """A fresh pair's update in this tier, and its parameters."""
    eager, x, fields = step_of("MLP")
    optimizer = getattr(torch.optim, optim)(eager.parameters, lr=1e-2, **options)
    with eager.loss.pair.active(training=True):
        update, found, note = make_update(eager, optimizer, Health.on(CPU), tier, 100, x, fields, grad_clip)
    assert found == tier, note
    return update, list(eager.parameters)


def run(update: Update, steps: int = 20) -> None:
    torch.manual_seed(4)
    for i in range(steps):
        update.set_rate(1.0 - i / steps)
        update(images(16, i), {"index": torch.arange(16)})


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


@pytest.mark.parametrize("grad_clip", [None, 0.5])
@pytest.mark.parametrize(("optim", "options"), OPTIMIZERS)
def test_every_form_is_the_plain_loop_to_the_last_bit(optim: str, options: dict, grad_clip: float | None) -> None:
    expected = plain_loop(optim, grad_clip, **options)
    for tier in ("off", "graph"):
        update, parameters = updates_of(tier, optim, grad_clip, **options)
        with update.gradients.loss.pair.active(training=True):  # type: ignore[attr-defined]
            run(update)
        assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True)), tier


def test_adam_written_out_is_torchs_own_in_float64() -> None:
    torch.manual_seed(0)
    for decoupled, kind in ((False, torch.optim.Adam), (True, torch.optim.AdamW)):
        ours = [torch.randn(3, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
        theirs = [torch.nn.Parameter(value.clone()) for value in ours]
        optim = kind(theirs, lr=0.03, weight_decay=0.2, betas=(0.7, 0.95), eps=1e-3)
        state = [
            [torch.zeros((), dtype=torch.float64) for _ in ours],
            *([torch.zeros_like(v) for v in ours] for _ in "mv"),
        ]
        for _ in range(7):
            gradients = [torch.randn_like(value) for value in ours]
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient.clone()
            optim.step()
            rate = torch.tensor(0.03, dtype=torch.float64)
            adam(ours, gradients, state, rate, torch.tensor(0.0), decoupled, optim.param_groups[0])
        assert all(torch.allclose(a, b.detach(), rtol=1e-13, atol=1e-14) for a, b in zip(ours, theirs, strict=True))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("optim", "options", "grad_clip"), [(*OPTIMIZERS[1], 0.5)])
def test_the_compiled_form_follows_the_plain_loop(optim: str, options: dict, grad_clip: float | None) -> None:
    expected = plain_loop(optim, grad_clip, **options)
    update, parameters = updates_of("inductor", optim, grad_clip, **options)
    assert isinstance(update, CompiledUpdate)
    run(update)
    for found, value in zip(parameters, expected, strict=True):
        assert float((found - value).detach().abs().max()) < 1e-5  # of steps of 1e-2
    steps, _, _ = adam_state(update.optim, parameters)
    assert {step.item() for step in steps} == {20.0}, "the optimiser's own state was used"


def poison(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.numel()).reshape(x.shape) == 3, torch.nan, x)


@pytest.mark.parametrize(
    ("tier", "optim", "skip"),
    [
        *((tier, optim, skip) for tier in ("off", "graph") for optim in ("Adam", "RMSprop") for skip in (False, True)),
        pytest.param("inductor", "Adam", True, marks=[needs_compiler, pytest.mark.slow]),
    ],
)
def test_a_step_that_is_not_finite_leaves_no_trace(tier: str, optim: str, skip: bool) -> None:
    """Skipping: the parameters are those of a training without that batch; else those before it, whatever follows."""
    fused = {"fused": True} if optim == "Adam" else {}
    results = []
    for poisoned in (True, False):
        eager, x, fields = step_of("MLP")
        optimizer = getattr(torch.optim, optim)(eager.parameters, lr=1e-2, **fused)
        health = Health.on(CPU, skip=skip)
        with eager.loss.pair.active(training=True):
            update, _, _ = make_update(eager, optimizer, health, tier, 100, x, fields)
            for i in range(6):
                if i == 3 and not poisoned and skip:
                    continue
                if i >= 3 and not poisoned and not skip:
                    break
                torch.manual_seed(i)
                update.set_rate(1.0)
                update(poison(images(16, i)) if i == 3 else images(16, i), fields)
        verdict = health.read()
        assert (verdict.first_bad, verdict.num_bad > 0) == ((3, True) if poisoned else (None, False))
        results.append([p.detach().clone() for p in eager.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_direct_kernel_is_taken_after_the_first_step_and_for_plain_adam_alone() -> None:
    update, _ = updates_of("graph", fused=True)
    assert isinstance(update, OptimizerUpdate)
    with update.gradients.loss.pair.active(training=True):  # type: ignore[attr-defined]
        run(update, 2)
    assert update._fused is not None
    parameter = torch.nn.Parameter(torch.zeros(2))
    for optim in (torch.optim.SGD([parameter], lr=1.0), torch.optim.Adam([parameter], amsgrad=True, fused=True)):
        assert fused_adam(optim, [parameter]) is None


def test_the_state_is_made_without_a_step() -> None:
    parameter = torch.nn.Parameter(torch.randn(4))
    before, optim = parameter.detach().clone(), torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5, fused=True)
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
        with eager.loss.pair.active(training=True):
            update, _, _ = make_update(eager, optimizer, Health.on(CPU), "graph", 10, x, fields, None, reduce)
            torch.manual_seed(0)
            update(x, fields)
        results.append([p.detach().clone() for p in eager.parameters])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(*results, strict=True))


def test_the_norm_is_that_of_all_gradients_together() -> None:
    gradients = [torch.randn(3, 4), torch.randn(7)]
    assert torch.allclose(gradient_norm(gradients), torch.cat([g.flatten() for g in gradients]).norm())


def test_auto_takes_the_graph_for_little_work_and_says_why() -> None:
    eager, x, fields = step_of("MLP")
    optim = torch.optim.Adam(eager.parameters, fused=True)
    with eager.loss.pair.active(training=True):
        _, tier, why = make_update(eager, optim, Health.on(CPU), "auto", 100, x, fields)
    assert tier == "graph" and "less than compiling is worth" in why


def test_without_a_compiler_the_graph_serves_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    eager, x, fields = step_of("MLP")
    optim = torch.optim.Adam(eager.parameters, fused=True)
    with eager.loss.pair.active(training=True):
        _, tier, why = make_update(eager, optim, Health.on(CPU), "inductor", 100, x, fields)
    assert tier == "graph" and "g++" in why


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("net", ["MLP", "Conv"])
def test_two_hundred_compiled_steps_follow_the_eager_ones(net: str) -> None:
    """Losses within 1e-6 relative, parameters within 1e-5: ragged batches, a falling rate, clipping, KL warm-up."""
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
    if net == "MLP":  # a bias before a BatchNorm has gradient 0, and Adam normalises its rounding noise
        assert max(float((a - b).abs().max()) for a, b in zip(*parameters, strict=True)) < 1e-5


def test_a_captured_training_is_the_one_that_is_not_to_the_last_bit() -> None:
    """With the step itself for its replay: rows are gathered, odd batches take the inner update, the state is put back."""
    results = []
    for captured in (False, True):
        eager, x, fields = step_of("MLP")
        optimizer = torch.optim.Adam(eager.parameters, lr=1e-2, fused=True)
        health, source = Health.on(CPU), Resident(images(70), {}, 16, CPU)
        with eager.loss.pair.active(training=True):
            update, _, _ = make_update(eager, optimizer, health, "graph", 100, x, fields)
            make_state(optimizer)
            if captured:
                own = [tensor for state in optimizer.state.values() for tensor in state.values()]
                update = CapturedUpdate(
                    update, source, [*eager.loss.pair.tensors(), *own, *health.tensors], lambda step: step
                )
                update.prepare(next(source.rows(0, 0)))
            torch.manual_seed(0)
            sums = []
            for epoch in range(2):
                for batch in update.batches(source, 5, epoch):
                    update.set_rate(0.5)
                    sums.append(update(*batch).clone())
                    x, fields = update.images(*batch)
                    assert x.shape[1:] == (1, 8, 8) and len(fields["index"]) == len(x)
        assert health.read().first_bad is None and int(health.step) == 10
        results.append([*sums, *(p.detach().clone() for p in eager.parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device, and there is none")
def test_on_cuda_the_step_is_one_graph_whose_noise_goes_on() -> None:
    torch.manual_seed(0)
    model, guide = small_pair()
    history = fit(
        model, guide, images(200), num_steps=60, batch_size=40, compile="graph", device="cuda", progress=False
    )
    assert "CUDA graph" in history.note
    assert len({record.loss for record in history.train}) == len(history.train)
    assert history.train[-1].elbo > history.train[0].elbo


def test_a_compiled_step_and_its_ragged_form_are_told_one_learning_rate() -> None:
    """On CUDA both read it from a tensor: an odd batch, which takes the other form, must find it there too."""
    beside, _ = updates_of("graph", fused=True)
    assert isinstance(beside, OptimizerUpdate) and isinstance(beside.gradients, StagedStep)
    beside.rate = torch.tensor(0.0)
    update = CompiledUpdate(beside, beside.gradients)
    update.set_rate(0.25)
    assert float(update.rate) == float(beside.rate.double().round(decimals=9)) == 0.25e-2
