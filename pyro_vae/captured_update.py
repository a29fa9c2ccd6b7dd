"""One training step as one CUDA graph: gathering, binarization, gradients and optimiser, with no word from the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyro_vae.batches import Batch, Resident
from pyro_vae.compiled_update import restored
from pyro_vae.staging import NotStageable
from pyro_vae.updates import Update

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a step on fixed tensors to a function that replays it and returns the same output tensor."""

WARM_UPS = 3


class CapturedUpdate(Update):
    """Another update on batches of one size, captured: it is told the rows of a batch, and gathers them itself.

    The host copies the rows, the learning rate and the KL weight to where the graph reads them, and replays it. Noise
    goes on from replay to replay, for torch's generator is part of the capture.
    """

    def __init__(
        self, inner: Update, source: Resident, state: Sequence[Tensor], capture: Capture | None = None
    ) -> None:
        super().__init__(inner.optim, inner.health)
        self.form = f"{inner.form}, captured as one CUDA graph"
        self.inner, self.source, self.state = inner, source, state
        self._capture = capture_on_cuda if capture is None else capture
        self._rows: Tensor | None = None
        self._replay: Callable[[], Tensor] | None = None

    def set_rate(self, factor: float) -> None:
        """Where the graph reads it."""
        self.inner.set_rate(factor)

    def batches(self, source: Resident, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:  # type: ignore[override]
        """The rows of each batch in the place of its images."""
        return ((rows, {}) for rows in source.rows(seed, epoch, skip))

    def images(self, x: Tensor, fields: Mapping[str, Tensor]) -> Batch:
        """The batch that rows stand for."""
        return self.source.take(x)

    def prepare(self, rows: Tensor) -> None:
        """Capture the step for as many rows; parameters, optimiser and random state are left as they were.

        Raises:
            NotStageable: what stood against it, in one clause.
        """
        self._rows = rows.clone()

        def step() -> Tensor:
            assert self._rows is not None
            return self.inner(*self.source.take(self._rows))

        with torch.random.fork_rng([rows.device] if rows.device.type == "cuda" else []), restored(self.state):
            try:
                self._replay = self._capture(step)
            except Exception as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                raise NotStageable(f"no CUDA graph ({type(error).__name__}: {reason[:160]})") from error

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One replay; a batch of another size takes the inner update."""
        if self._rows is None or self._replay is None or x.shape != self._rows.shape:
            return self.inner(*self.source.take(x))
        self._rows.copy_(x)
        return self._replay()


def capture_on_cuda(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Warm up on a side stream, as capturing asks for, then capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
