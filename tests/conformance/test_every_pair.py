"""Every part, swapped alone into an experiment: it trains, stages, saves, loads, generates and is
evaluated.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import pytest
import torch

from pyro_vae import compare, log_marginal
from pyro_vae.errors import UserError
from pyro_vae.pair.runtime import Pair
from pyro_vae.training import checkpoint, checkpoint_files
from pyro_vae.training.checkpoint import Checkpoint
from tests.support.conforming import (
    EVENT_SHAPE,
    SWAPPED,
    images,
    loss_of,
    mean_loss,
    one_line,
    programs,
    rows,
    shaken,
    swaps,
)
from tests.support.part_laws import assert_training_lowers_the_loss, train

each = pytest.mark.parametrize("swap", swaps(*SWAPPED))
each_pair = pytest.mark.parametrize(
    "swap", [swap for swap in swaps(*SWAPPED) if not swap.startswith("objective=")]
)


@each
def test_twenty_steps_lower_the_loss(swap: str) -> None:
    assert_training_lowers_the_loss(swap)


@pytest.mark.slow
@each
def test_the_staged_step_is_the_eager_one(swap: str) -> None:
    """Bit for bit, after steps on batches that were not the traced one."""
    trained = []
    for tier in ("graph", "off"):
        model, guide = programs(swap)
        history = train(
            swap, model, guide, images(model), num_steps=5, learning_rate=0.01, compile=tier
        )
        assert history.compile == tier, history.note
        trained.append([history.train[-1].loss, *Pair.of(model, guide).tensors()])
    assert trained[0][0] == trained[1][0]
    for ours, theirs in zip(trained[0][1:], trained[1][1:], strict=True):
        assert torch.equal(ours, theirs)


@each_pair
def test_save_and_load(swap: str, tmp_path: Path) -> None:
    """What is loaded into a pair from another seed is the pair that was saved, to the last bit of
    its loss.
    """
    saved, fresh = programs(swap), programs(swap, seed=7)
    for module in saved:
        shaken(module)
    x = images(saved[0])
    checkpoint_files.save(tmp_path / "pair.pt", Checkpoint(checkpoint.state_of(*saved)))
    checkpoint.restore(checkpoint_files.load(tmp_path / "pair.pt"), *fresh, name="pair.pt")
    assert mean_loss(loss_of(swap, *fresh), x, 1) == mean_loss(loss_of(swap, *saved), x, 1)
    assert torch.equal(images(fresh[0]), images(saved[0]))


@each
def test_the_loss_moves_every_parameter_of_the_part(swap: str) -> None:
    """No parameter is dead: each has a gradient that is finite, and is not 0 in every entry for
    every noise.
    """
    model, guide = programs(swap)
    loss, x = loss_of(swap, shaken(model), shaken(guide)), images(model)
    moved: dict[str, float] = {}
    for seed in range(3):
        torch.manual_seed(seed)
        loss.zero_grad()
        loss(x, **rows(x)).backward()
        for name, parameter in loss.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} is not reached"
                assert parameter.grad.isfinite().all(), name
                moved[name] = max(moved.get(name, 0.0), parameter.grad.abs().max().item())
    assert all(moved.values()), [name for name, size in moved.items() if not size]


@pytest.mark.slow
@each_pair
def test_log_marginal(swap: str) -> None:
    """log p(x) ≥ ELBO from the same draws, staged as eager, and comparable; or one sentence where
    there is no log p(x).
    """
    model, guide = programs(swap)
    x = images(model)
    try:
        staged, eager = (
            log_marginal(
                model, guide, x, num_samples=16, device="cpu", compile=tier, **rows(x, model, guide)
            )
            for tier in ("graph", "off")
        )
    except UserError as error:
        assert "log p(x)" in one_line(error)
        return
    assert isfinite(staged.mean) and staged.log_px.shape == (len(x),)
    torch.testing.assert_close(
        staged.log_px, eager.log_px, rtol=1e-5, atol=1e-5
    )  # encoded in other tiles
    assert staged.elbo <= staged.mean + 1e-5 * abs(staged.mean)
    assert "staged" in str(compare({"staged": staged, "eager": eager}))


@each_pair
def test_generation(swap: str) -> None:
    """As many images as are asked for, like those observed, and reproducible from the seed."""
    model, _ = programs(swap)
    for number in (1, 3):
        x = images(model, number)
        assert x.shape == (number, *EVENT_SHAPE) and x.isfinite().all()
        assert torch.equal(x, images(model, number))
    assert not torch.equal(images(model, 20), images(model, 20, seed=9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each
def test_on_a_gpu(swap: str) -> None:
    """The pair follows its device, all tensors of it; its mean loss there is the CPU's, within the
    errors of the noise.
    """
    model, guide = programs(swap)
    x = images(model)
    expected = mean_loss(loss_of(swap, model, guide), x, 64)
    there = [module.to("cuda") for module in programs(swap)]
    assert mean_loss(loss_of(swap, *there), x.cuda(), 64) == pytest.approx(expected, rel=0.05)
    train(swap, *there, x, num_steps=3, device="cuda")
    assert all(tensor.is_cuda for module in there for tensor in module.state_dict().values())
