"""One training step: hand-written PyTorch, Pyro's SVI and pyro_vae's tiers, with one model, one batch, fused Adam.

python benchmarks/training_step.py [architecture …]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pyro
import torch
from architectures import ARCHITECTURES, Architecture
from harness import interleave, ratios, report, write
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.objectives import Loss, TraceMeanField_ELBO
from pyro_vae.pair import Pair
from pyro_vae.steps import EagerStep, StagedStep
from pyro_vae.training import trainable

Run = Callable[[], Tensor]  # one step; returns the loss, summed over the batch
STEPS, ROUNDS = 30, 9


def hand_written(at: Architecture, x: Tensor, *, compiled: bool) -> Run:
    """As its users write it: the closed-form KL, logits, fused Adam."""
    model, guide = at.pair()
    encoder, decoder = guide.net, model.likelihood.net
    optimizer = torch.optim.Adam([*guide.parameters(), *model.parameters()], lr=1e-3, fused=True)

    def elbo_loss(x: Tensor) -> Tensor:
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return reconstruction + kl

    loss_of = torch.compile(elbo_loss) if compiled else elbo_loss

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        (loss / len(x)).backward()
        optimizer.step()
        return loss.detach()

    return step


def svi(at: Architecture, x: Tensor) -> Run:
    """Pyro's own loop, validation off, the global store cleared."""
    pyro.clear_param_store()
    model, guide = at.pair()
    inference = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    first = inference.evaluate_loss(x)
    for _ in range(20):
        inference.step(x)
    assert inference.evaluate_loss(x) < first, "SVI does not train: the store held another model's parameters"
    return lambda: torch.tensor(inference.step(x))


def ours(at: Architecture, x: Tensor, tier: str) -> Run:
    """The step that ``fit`` runs in this tier, with the optimiser that it makes."""
    model, guide = at.pair()
    pair = Pair.of(model, guide)
    loss = Loss(TraceMeanField_ELBO(), pair)
    fields = {"index": torch.arange(len(x))}
    with pair.active(training=True):
        parameters = trainable(loss, x, fields)
        gradients = EagerStep(loss, parameters, None)
        if tier != "off":
            gradients = StagedStep(gradients, tier)
            gradients.prepare(x, fields)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> Tensor:
        with pair.active(training=True):
            sums = gradients(x, fields)
            optimizer.step()
        return sums[0]

    return step


def repeat(step: Run) -> Callable[[], None]:
    """A round: enough steps to be timed."""

    def work() -> None:
        for _ in range(STEPS):
            step()

    return work


def bench(at: Architecture) -> dict[str, dict[str, float]]:
    """All contestants on one architecture, their losses first asserted equal within noise."""
    pyro.enable_validation(False)
    x = at.images(at.batch_size)
    makers: dict[str, Callable[[], Run]] = {
        "hand-written, eager": lambda: hand_written(at, x, compiled=False),
        "hand-written, torch.compile": lambda: hand_written(at, x, compiled=True),
        "pyro.infer.SVI": lambda: svi(at, x),
        "pyro_vae, eager Pyro": lambda: ours(at, x, "off"),
        "pyro_vae, traced graph": lambda: ours(at, x, "graph"),
        "pyro_vae, inductor": lambda: ours(at, x, "inductor"),
    }
    steps = {name: make() for name, make in makers.items()}
    losses = {}
    for name, step in steps.items():
        torch.manual_seed(0)
        losses[name] = torch.stack([step().float().cpu() for _ in range(100)])[-20:].mean().item()
    base = losses["hand-written, eager"]
    spread = {name: value / base for name, value in losses.items()}
    assert all(0.9 < ratio < 1.1 for ratio in spread.values()), f"the contestants do not train alike: {spread}"
    return ratios(interleave({name: repeat(step) for name, step in steps.items()}, ROUNDS), "hand-written, eager")


def main(names: list[str]) -> None:
    """Time the architectures asked for, or all."""
    tables = {}
    for name in names or list(ARCHITECTURES):
        tables[name] = bench(ARCHITECTURES[name])
        report(f"training step, {name}", tables[name], "hand-written, eager", 1e3 / STEPS)
    write("training_step", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
