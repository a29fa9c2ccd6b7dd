"""Training steps as CUDA graphs: a step, its gradients and its update without work on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pyro_vae.compile.trace import NotStageable
from pyro_vae.data.loaders import Batch, Resident, Source
from pyro_vae.errors import first_line
from pyro_vae.training.train_step import StagedStep, TrainStep

WARM_UPS = 3
"""Runs on a side stream before a graph is captured, as torch asks for."""


Capture = Callable[[Callable[[], Tensor], torch.device], Callable[[], Tensor]]
"""(step, device) -> a function that does the step again, with no word from the host."""


class Rows(Source):
    """A resident source whose shuffled batches are row numbers, for a step that gathers its images
    itself.
    """

    def __init__(self, source: Resident) -> None:
        self.source, self.batch_size, self.num_images = source, source.batch_size, source.num_images

    @property
    def num_batches(self) -> int:
        """Batches in one pass."""
        return self.source.num_batches

    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The rows of each batch in the place of its images."""
        return ((rows, {}) for rows in self.source.rows(seed, epoch, skip))

    def in_order(self) -> Iterator[Batch]:
        """Images, as the source has them."""
        return self.source.in_order()

    def images(self, batch: Batch) -> Batch:
        """The images of these rows."""
        return self.source.take(batch[0])


class CapturedStep(TrainStep):
    """A step on batches of one size as one CUDA graph: called with rows, it gathers their images in
    the graph.

    The host copies the rows, the rate and the KL weight to where the graph reads them, and replays
    it. Noise goes on from replay to replay, as torch's generator is part of the capture.
    """

    def __init__(
        self,
        inner: StagedStep,
        rows: Rows,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(inner.loss, inner.parameters, inner.update, inner.observe)
        self.tier, self.inner, self.source = inner.tier, inner, rows
        self._rows = next(rows.shuffled(0, 0))[0].clone()
        with self.undone():
            try:
                self._replay = (capture or capture_on_cuda)(
                    lambda: inner(*rows.images((self._rows, {}))), self._rows.device
                )
            except Exception as error:
                raise NotStageable(f"no CUDA graph ({first_line(error)})") from error

    def __call__(self, x: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        """One replay; rows of another size take the inner step."""
        if x.shape != self._rows.shape:
            return self.inner(*self.source.images((x, {})))
        self._rows.copy_(x)
        return self._replay()

    def check(self, *batches: Batch) -> None:
        """Of the step that was captured."""
        self.inner.check(*batches)


def capture_on_cuda(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Warm up on a side stream, then capture; the function that is given replays.

    Streams and graphs belong to the current device, so that ``device`` is made the current one: a
    capture elsewhere would be empty, and its replay a training that changes nothing. A capture that
    fails is reset, and a number is drawn, which raises where the generator is still capturing.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:  # calls of other threads (a data loader's) don't end this capture
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = step()
        except Exception:
            graph.reset()
            torch.rand((), device=device)
            raise

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return output

    return replay
