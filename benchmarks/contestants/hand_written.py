"""PyTorch by hand: the closed-form KL, logits, fused Adam; one image's draws in chunks for log
p(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.architectures import Architecture
from benchmarks.contestants import Step, Train, timed


def _step(
    at: Architecture, device: torch.device, compiled: bool, seed: int
) -> Callable[[Tensor], Tensor]:
    encoder, decoder = (net.to(device) for net in at.networks(seed))
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True
    )

    def elbo_loss(x: Tensor) -> Tensor:
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return reconstruction + kl

    loss_of = torch.compile(elbo_loss) if compiled else elbo_loss

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = loss_of(x)
        (loss / len(x)).backward()
        optimizer.step()
        return loss.detach()

    return step


def step(at: Architecture, x: Tensor, *, compiled: bool = False, seed: int = 0) -> Step:
    """One training step on the batch ``x``."""
    run = _step(at, x.device, compiled, seed)
    return lambda: run(x)


def captured_step(at: Architecture, x: Tensor, seed: int = 0) -> Step:
    """The eager step as one CUDA graph, its optimiser inside."""
    encoder, decoder = (net.to(x.device) for net in at.networks(seed))
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True, capturable=True
    )

    def work() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl
        (loss / len(x)).backward()
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = work()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def epochs(at: Architecture, images: Tensor, *, compiled: bool = False, seed: int = 0) -> Train:
    """Passes over resident data: a permutation and a gather a batch; the loss is read once an
    epoch.
    """
    run = _step(at, images.device, compiled, seed)

    def epoch() -> Tensor:
        total = torch.zeros((), device=images.device)
        for rows in torch.randperm(len(images), device=images.device).split(at.batch_size):
            total += run(images.index_select(0, rows))
        return total

    return timed(epoch, len(images))


@torch.inference_mode()
def log_px(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, num_samples: int, chunk: int = 500
) -> Tensor:
    """log p(x) of each image by importance sampling, ``chunk`` draws of one image at a time."""
    loc, log_scale = encoder(x).chunk(2, dim=-1)
    scale, log_det = log_scale.exp(), log_scale.sum(-1)
    found = []
    for i, image in enumerate(x):
        log_w = []
        for _ in range(num_samples // chunk):
            noise = torch.randn(chunk, loc.shape[-1], device=x.device)
            z = loc[i] + scale[i] * noise
            log_likelihood = -F.binary_cross_entropy_with_logits(
                decoder(z), image.expand(chunk, -1), reduction="none"
            ).sum(-1)
            log_w.append(log_likelihood + 0.5 * (noise.square() - z.square()).sum(-1) + log_det[i])
        found.append(torch.cat(log_w).logsumexp(0) - math.log(num_samples))
    return torch.stack(found)
